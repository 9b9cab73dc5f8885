/* What an exchange costs with the stamps compiled out, absent, switched off, and on. Compiled twice:
 * PARTVISOR_WITHOUT_TRACE leaves the stamps out.
 *
 *   trace_cost absent|off|on EXCHANGES ROUNDS [CPU CPU]        prints {"exchange_ns": [one a round]}
 *
 * Without CPUs one thread plays both ends: neither another CPU nor the scheduler is in the figure, and a nanosecond shows.
 * With them there are two processes that spin, as two partitions would. */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "endpoint.h"

#define RING_BYTES 16384u
#define TRACKS 2u
#define STAMPS 4096u
#define PAYLOAD_BYTES 64u

static void fail(const char *what)
{
    fprintf(stderr, "trace_cost: %s\n", what);
    exit(1);
}

static void open_end(struct endpoint *end, uint8_t *out, uint8_t *in, const struct trace *trace, uint64_t channel)
{
    const struct wait_policy policy = {.mode = WAIT_SPIN, .spin_ns = ENDPOINT_DEFAULT_SPIN_NS};
    memset(end, 0, sizeof *end);
    if (ring_writer_attach(&end->writer, out, RING_BYTES) != RING_OK || ring_reader_attach(&end->reader, in, RING_BYTES) != RING_OK
        || endpoint_open(end, -1, -1, &policy))
        fail("no endpoint");
    end->trace = trace;
    end->trace_channel = channel;
    endpoint_observe(end);
}

/* As the channel's functions do it, stamps and all. */
static void send_packet(struct endpoint *end, uint16_t type, enum trace_hop hop, uint64_t id, const uint8_t *payload)
{
    endpoint_stamp_write(end, hop, id);
    if (ring_write(&end->writer, type, 0, id, NULL, 0, payload, PAYLOAD_BYTES) != RING_OK)
        fail("a ring is full");
    endpoint_publish(end);
}

/* The id is looked at, as every server and client does: without that, a program without stamps need not even load it. */
static void take_packet(struct endpoint *end, enum trace_hop hop, uint64_t id, uint8_t *payload)
{
    struct ring_packet packet;
    while (ring_reader_refresh(&end->reader) == RING_EMPTY)
        clock_relax();
    if (ring_peek(&end->reader, &packet) != RING_OK)
        fail("a ring is corrupt");
    ring_copy_out(&end->reader, packet.payload_at, payload, PAYLOAD_BYTES);
    endpoint_stamp(end, hop, packet.transaction_id);
    if (packet.transaction_id != id)
        fail("another packet");
    ring_hold(&end->reader, &packet);
    endpoint_release(end);
}

static void run_on(const char *cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(atoi(cpu), &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        fail("cannot run on that CPU");
}

static void serve_one(struct endpoint *server, uint64_t id, uint8_t *payload)
{
    take_packet(server, TRACE_TAKE, id, payload);
    send_packet(server, RING_PACKET_COMPLETION, TRACE_ANSWER, id, payload);
}

int main(int argc, char **argv)
{
    const bool apart = argc == 6;
    const long exchanges = argc == 4 || apart ? atol(argv[2]) : 0, rounds = argc == 4 || apart ? atol(argv[3]) : 0;
    if (exchanges < 1 || rounds < 1) {
        fprintf(stderr, "usage: trace_cost absent|off|on EXCHANGES ROUNDS [CPU CPU]\n");
        return 2;
    }
    const size_t ring = RING_PAGE_BYTES + RING_BYTES, bytes = trace_bytes(TRACKS, STAMPS);
    uint8_t *memory = mmap(NULL, 2 * ring + bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("no memory");
    struct trace_header *header = (struct trace_header *)(memory + 2 * ring);
    *header = (struct trace_header){.magic = TRACE_MAGIC, .version = TRACE_VERSION, .uses_tsc = 1, .tracks = TRACKS,
                                    .stamps = STAMPS, .enabled = strcmp(argv[1], "on") == 0};
    struct trace trace;
    if (trace_attach(&trace, header, bytes) < 0)
        fail("no trace");
    const struct trace *given = strcmp(argv[1], "absent") == 0 ? NULL : &trace;
    static struct endpoint client, server;
    open_end(&client, memory, memory + ring, given, 1);
    open_end(&server, memory + ring, memory, given, 1 | TRACE_SERVER);
    uint8_t payload[PAYLOAD_BYTES] = {0};
    pid_t peer = 0;
    if (apart) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        peer = fork();
        if (peer < 0)
            fail("no process");
        run_on(argv[peer == 0 ? 5 : 4]);
        if (peer == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (uint64_t id = 1;; id++)
                serve_one(&server, id, payload);
        }
    }
    printf("{\"exchange_ns\": [");
    for (long round = 0; round < rounds; round++) {
        const uint64_t begin = clock_now_ns();
        for (long i = 1; i <= exchanges; i++) {
            send_packet(&client, RING_PACKET_IN_BAND, TRACE_WRITE, (uint64_t)i, payload);
            if (!apart)
                serve_one(&server, (uint64_t)i, payload);
            take_packet(&client, TRACE_RECEIVE, (uint64_t)i, payload);
        }
        printf("%s%.3f", round ? ", " : "", (double)(clock_now_ns() - begin) / (double)exchanges);
    }
    printf("]}\n");
    if (apart) {
        kill(peer, SIGKILL);
        waitpid(peer, NULL, 0);
    }
    return 0;
}
