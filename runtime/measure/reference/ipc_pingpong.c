/* One request and its reply between two C processes: what a transport costs without Python.
 *
 * usage: ipc_pingpong KIND BYTES SECONDS RATE CLIENT_CPUS SERVER_CPUS     prints one JSON object
 *        KIND: slot, futex, eventfd, pipe, pty, seqpacket, stream
 *        RATE: requests a second, each at its own time; 0: one after the other
 *        CPUS: such as 0 or 0,1
 *
 * slot is the limit of them all: BYTES of shared memory that the two hand each other, spinning; its last eight bytes are the
 * turn. The others copy the payload through shared memory (futex, eventfd) or through the kernel. The server adds one to the
 * first and to the last word of each request; the client checks both. Each exchange is timed. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "clock.h"
#include "histogram.h"

#define BYTES_MAX (1u << 20)
#define WARM_UP_NS 5000000u
#define MARK (UINT64_C(1) << 63) /* in the first word: the server notes what it has used so far */
#define OVERTIME 2.0             /* as runtime/measure/exchanges.py */
#define SLEEP_NS_MIN 250000u
#define WAKES_LATE_NS 120000u

struct shared {
    _Alignas(64) _Atomic uint32_t to_server, to_client; /* futex words */
    _Alignas(64) struct rusage marked;                  /* the server's, at the last mark */
    _Alignas(64) uint8_t slot[BYTES_MAX];
    _Alignas(64) uint8_t back[BYTES_MAX];
};

/* One side of a way to talk: where it writes, where it reads. */
struct side {
    struct shared *shared;
    uint8_t *out, *in;
    uint32_t bytes;
    int write_fd, read_fd;
    _Atomic uint32_t *ring, *wait;
    uint64_t turn; /* slot: the next one that is ours to read */
    uint32_t seen;
};

static void fail(const char *what)
{
    fprintf(stderr, "ipc_pingpong: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static void run_on(const char *cpus)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (char *end; *cpus; cpus = *end ? end + 1 : end) {
        const long cpu = strtol(cpus, &end, 10);
        if (end == cpus || cpu < 0 || cpu >= CPU_SETSIZE || (*end && *end != ','))
            fail("CPUS: numbers such as 0,1");
        CPU_SET((int)cpu, &set);
    }
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        fail("cannot run on the processors asked for");
}

static _Atomic uint64_t *turn_of(const struct side *side)
{
    return (_Atomic uint64_t *)(side->shared->slot + side->bytes - 8);
}

static void slot_put(struct side *side, const uint8_t *data)
{
    memcpy(side->shared->slot, data, side->bytes - 8);
    atomic_store_explicit(turn_of(side), side->turn++, memory_order_release);
}

static void slot_get(struct side *side, uint8_t *data)
{
    while (atomic_load_explicit(turn_of(side), memory_order_acquire) != side->turn)
        continue;
    side->turn++;
    memcpy(data, side->shared->slot, side->bytes - 8);
}

static void futex(_Atomic uint32_t *word, int operation, uint32_t value)
{
    syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static void futex_put(struct side *side, const uint8_t *data)
{
    memcpy(side->out, data, side->bytes);
    atomic_fetch_add_explicit(side->ring, 1, memory_order_release);
    futex(side->ring, FUTEX_WAKE, 1);
}

static void futex_get(struct side *side, uint8_t *data)
{
    while (atomic_load_explicit(side->wait, memory_order_acquire) == side->seen)
        futex(side->wait, FUTEX_WAIT, side->seen);
    side->seen++;
    memcpy(data, side->in, side->bytes);
}

static void eventfd_put(struct side *side, const uint8_t *data)
{
    memcpy(side->out, data, side->bytes);
    if (eventfd_write(side->write_fd, 1) < 0)
        fail("eventfd_write");
}

static void eventfd_get(struct side *side, uint8_t *data)
{
    eventfd_t value;
    if (eventfd_read(side->read_fd, &value) < 0)
        fail("eventfd_read");
    memcpy(data, side->in, side->bytes);
}

static void fd_put(struct side *side, const uint8_t *data)
{
    for (uint32_t at = 0; at < side->bytes;) {
        const ssize_t written = write(side->write_fd, data + at, side->bytes - at);
        if (written <= 0)
            fail("write");
        at += (uint32_t)written;
    }
}

static void fd_get(struct side *side, uint8_t *data)
{
    for (uint32_t at = 0; at < side->bytes;) {
        const ssize_t got = read(side->read_fd, data + at, side->bytes - at);
        if (got <= 0)
            fail("read");
        at += (uint32_t)got;
    }
}

static const struct way {
    const char *name;
    void (*put)(struct side *, const uint8_t *);
    void (*get)(struct side *, uint8_t *);
} WAYS[] = {
    {"slot", slot_put, slot_get},          {"futex", futex_put, futex_get}, {"eventfd", eventfd_put, eventfd_get},
    {"pipe", fd_put, fd_get},              {"seqpacket", fd_put, fd_get}, {"stream", fd_put, fd_get},
    {"pty", fd_put, fd_get},
};

/* Both ends of a raw terminal: [0] is the slave. */
static void open_terminal(int ends[2])
{
    struct termios mode;
    ends[1] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (ends[1] < 0 || grantpt(ends[1]) < 0 || unlockpt(ends[1]) < 0)
        fail("posix_openpt");
    const char *const name = ptsname(ends[1]);
    ends[0] = name ? open(name, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
    if (ends[0] < 0 || tcgetattr(ends[0], &mode) < 0)
        fail("the terminal");
    cfmakeraw(&mode);
    if (tcsetattr(ends[0], TCSANOW, &mode) < 0)
        fail("tcsetattr");
}

static void connect_sides(const char *kind, struct side *client, struct side *server)
{
    int there[2] = {-1, -1}, back[2] = {-1, -1};
    if (strcmp(kind, "eventfd") == 0) {
        there[0] = there[1] = eventfd(0, EFD_CLOEXEC);
        back[0] = back[1] = eventfd(0, EFD_CLOEXEC);
    } else if (strcmp(kind, "pipe") == 0) {
        if (pipe(there) < 0 || pipe(back) < 0)
            fail("pipe");
    } else if (strcmp(kind, "seqpacket") == 0 || strcmp(kind, "stream") == 0) {
        if (socketpair(AF_UNIX, strcmp(kind, "stream") == 0 ? SOCK_STREAM : SOCK_SEQPACKET, 0, there) < 0)
            fail("socketpair");
        back[0] = there[1];
        back[1] = there[0];
    } else if (strcmp(kind, "pty") == 0) {
        open_terminal(there);
        back[0] = there[1];
        back[1] = there[0];
    }
    client->write_fd = there[1];
    server->read_fd = there[0];
    server->write_fd = back[1];
    client->read_fd = back[0];
}

static uint64_t word_at(const uint8_t *data, uint32_t offset)
{
    uint64_t word;
    memcpy(&word, data + offset, 8);
    return word;
}

static void set_word(uint8_t *data, uint32_t offset, uint64_t word)
{
    memcpy(data + offset, &word, 8);
}

static void serve(const struct way *way, struct side *side, uint32_t last)
{
    static uint8_t data[BYTES_MAX];
    for (;;) {
        way->get(side, data);
        if (word_at(data, 0) & MARK)
            getrusage(RUSAGE_SELF, &side->shared->marked);
        set_word(data, 0, word_at(data, 0) + 1);
        set_word(data, last, word_at(data, last) + 1);
        way->put(side, data);
    }
}

static uint64_t exchanged;

static void exchange(const struct way *way, struct side *side, uint32_t last, uint64_t mark)
{
    static uint8_t request[BYTES_MAX], reply[BYTES_MAX];
    const uint64_t number = 2 * ++exchanged;
    set_word(request, 0, number | mark);
    set_word(request, last, ~number);
    way->put(side, request);
    way->get(side, reply);
    if (word_at(reply, 0) != (number | mark) + 1 || word_at(reply, last) != ~number + 1) {
        errno = 0;
        fail("a reply is not that of its request");
    }
}

static void closed(const struct way *way, struct side *side, uint32_t last, uint64_t for_ns, struct histogram *latency)
{
    uint64_t before = clock_now_ns();
    const uint64_t end = before + for_ns;
    do {
        exchange(way, side, last, 0);
        const uint64_t after = clock_now_ns();
        histogram_record(latency, after - before);
        before = after;
    } while (before < end);
}

static void open_loop(const struct way *way, struct side *side, uint32_t last, double seconds, double rate,
                      struct histogram *latency)
{
    const double interval_ns = 1e9 / rate;
    const uint64_t count = seconds * rate < 1 ? 1 : (uint64_t)(seconds * rate), begin = clock_now_ns();
    const double span_ns = (double)count * interval_ns > seconds * 1e9 ? (double)count * interval_ns : seconds * 1e9;
    const uint64_t give_up = begin + (uint64_t)(span_ns * OVERTIME);
    uint64_t done = begin, begun = 0;
    while (begun < count && done <= give_up) {
        const uint64_t intended = begin + (uint64_t)((double)begun++ * interval_ns), now = clock_now_ns();
        if (intended > now + SLEEP_NS_MIN) {
            const uint64_t left = intended - now - WAKES_LATE_NS;
            nanosleep(&(struct timespec){(time_t)(left / 1000000000u), (long)(left % 1000000000u)}, NULL);
        }
        while (clock_now_ns() < intended)
            continue;
        exchange(way, side, last, 0);
        done = clock_now_ns();
        histogram_record(latency, done - intended);
    }
    for (; begun < count; begun++) { /* what never began has waited until now at least */
        const uint64_t intended = begin + (uint64_t)((double)begun * interval_ns);
        histogram_record(latency, done > intended ? done - intended : 0);
    }
}

static void print_usage(const char *name, const struct rusage *before, const struct rusage *after)
{
#define NS(of, which) ((uint64_t)(of)->which.tv_sec * 1000000000u + (uint64_t)(of)->which.tv_usec * 1000u)
    printf(", \"%s\": {\"cpu_ns\": %llu, \"voluntary_switches\": %ld, \"involuntary_switches\": %ld}", name,
           (unsigned long long)(NS(after, ru_utime) + NS(after, ru_stime) - NS(before, ru_utime) - NS(before, ru_stime)),
           after->ru_nvcsw - before->ru_nvcsw, after->ru_nivcsw - before->ru_nivcsw);
}

int main(int argc, char **argv)
{
    const struct way *way = NULL;
    for (size_t i = 0; argc == 7 && i < sizeof WAYS / sizeof *WAYS; i++)
        if (strcmp(WAYS[i].name, argv[1]) == 0)
            way = &WAYS[i];
    const long bytes = argc == 7 ? atol(argv[2]) : 0;
    const double seconds = argc == 7 ? atof(argv[3]) : 0, rate = argc == 7 ? atof(argv[4]) : 0;
    if (!way || bytes < 32 || bytes > (long)BYTES_MAX || bytes % 8 || !(seconds > 0 && seconds < 3600) || rate < 0) {
        fprintf(stderr, "usage: ipc_pingpong KIND BYTES SECONDS RATE CLIENT_CPUS SERVER_CPUS\n");
        return 2;
    }
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail("no memory");
    struct side client = {.shared = shared, .out = shared->slot, .in = shared->back, .ring = &shared->to_server,
                          .wait = &shared->to_client, .bytes = (uint32_t)bytes, .turn = 1};
    struct side server = {.shared = shared, .out = shared->back, .in = shared->slot, .ring = &shared->to_client,
                          .wait = &shared->to_server, .bytes = (uint32_t)bytes, .turn = 1};
    connect_sides(argv[1], &client, &server);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const uint32_t last = (uint32_t)bytes - 16; /* the slot's own last word is its turn */
    const pid_t peer = fork();
    if (peer < 0)
        fail("fork");
    if (peer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_on(argv[6]);
        serve(way, &server, last);
    }
    run_on(argv[5]);
    static struct histogram latency;
    const uint64_t warm = clock_now_ns() + WARM_UP_NS;
    do
        exchange(way, &client, last, 0);
    while (clock_now_ns() < warm);
    struct rusage before, after;
    exchange(way, &client, last, MARK);
    const struct rusage server_before = shared->marked;
    getrusage(RUSAGE_SELF, &before);
    const uint64_t first = exchanged, begin = clock_now_ns();
    if (rate > 0)
        open_loop(way, &client, last, seconds, rate, &latency);
    else
        closed(way, &client, last, (uint64_t)(seconds * 1e9), &latency);
    const uint64_t took = clock_now_ns() - begin, count = exchanged - first;
    getrusage(RUSAGE_SELF, &after);
    exchange(way, &client, last, MARK);
    kill(peer, SIGKILL);
    waitpid(peer, NULL, 0);
    static uint8_t packed[HISTOGRAM_PACKED_BYTES_MAX];
    const size_t length = histogram_pack(&latency, packed);
    printf("{\"exchanges\": %llu, \"seconds\": %.9f, \"p50_ns\": %llu", (unsigned long long)count, (double)took / 1e9,
           (unsigned long long)histogram_percentile(&latency, 50));
    print_usage("client", &before, &after);
    print_usage("server", &server_before, &shared->marked);
    printf(", \"latency\": \"");
    for (size_t i = 0; i < length; i++)
        printf("%02x", packed[i]);
    printf("\"}\n");
    return 0;
}
