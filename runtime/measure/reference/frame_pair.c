/* Ethernet frames between two C processes, over what Linux has for that: a veth pair, or a plain TAP.
 *
 * usage: frame_pair KIND FRAME_BYTES SECONDS MODE WAIT CLIENT_CPU SERVER_CPU     prints one JSON object
 *        KIND: veth, tap      MODE: exchange (a frame there and back), flow (one way, as fast as both can)
 *        WAIT: spin, block
 *
 * In a user and a network namespace of its own, so no privileges are needed and nothing is left. Both ends of a veth pair are
 * packet sockets; of a TAP one is its descriptor, as a VMM has it, and the other a packet socket on the host's side of it.
 * A flow counts what arrived: where the receiver's buffer is full the kernel drops frames, and they are in no figure but lost. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "histogram.h"

#define FRAME_BYTES_MAX 65535u
#define FRAME_BYTES_MIN 32u
#define PROTOCOL 0x88b5 /* for experiments, by IEEE 802 */
#define BUFFER_BYTES (8 << 20)
#define LOST_NS 200000000u /* an answer that takes longer is lost, and is asked for again */
#define GRACE_NS 50000000u

struct shared {
    _Alignas(64) _Atomic uint64_t received, sent;
    _Alignas(64) _Atomic uint32_t over;
    struct rusage served;
};

static void fail(const char *what)
{
    fprintf(stderr, "frame_pair: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static void run_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        fail("cannot run on the processor asked for");
}

static void write_file(const char *path, const char *text)
{
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail(path);
    close(fd);
}

static void enter_namespaces(void)
{
    char map[64];
    const unsigned uid = (unsigned)geteuid(), gid = (unsigned)getegid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
        fail("no user and network namespaces here");
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    write_file("/proc/self/gid_map", map);
}

/* -- interfaces */

struct request {
    struct nlmsghdr head;
    struct ifinfomsg link;
    uint8_t attributes[256];
};

static struct rtattr *begin(struct request *request, unsigned short type)
{
    struct rtattr *found = (struct rtattr *)((uint8_t *)request + NLMSG_ALIGN(request->head.nlmsg_len));
    found->rta_type = type;
    found->rta_len = RTA_LENGTH(0);
    request->head.nlmsg_len = (uint32_t)((uint8_t *)found - (uint8_t *)request) + found->rta_len;
    return found;
}

static void end(struct request *request, struct rtattr *attribute)
{
    attribute->rta_len = (unsigned short)((uint8_t *)request + request->head.nlmsg_len - (uint8_t *)attribute);
}

static void add_text(struct request *request, unsigned short type, const char *text)
{
    struct rtattr *attribute = begin(request, type);
    memcpy(RTA_DATA(attribute), text, strlen(text) + 1);
    request->head.nlmsg_len += (uint32_t)NLMSG_ALIGN(strlen(text) + 1);
    attribute->rta_len = (unsigned short)RTA_LENGTH(strlen(text) + 1);
}

static void make_veth(const char *one, const char *other)
{
    struct request request = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)),
                                       .nlmsg_type = RTM_NEWLINK,
                                       .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK}};
    add_text(&request, IFLA_IFNAME, one);
    struct rtattr *info = begin(&request, IFLA_LINKINFO);
    add_text(&request, IFLA_INFO_KIND, "veth");
    struct rtattr *data = begin(&request, IFLA_INFO_DATA);
    struct rtattr *peer = begin(&request, VETH_INFO_PEER);
    memset(RTA_DATA(peer), 0, sizeof(struct ifinfomsg));
    request.head.nlmsg_len += NLMSG_ALIGN(sizeof(struct ifinfomsg));
    add_text(&request, IFLA_IFNAME, other);
    end(&request, peer);
    end(&request, data);
    end(&request, info);
    const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        uint8_t rest[512];
    } answer;
    if (fd < 0 || send(fd, &request, request.head.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0)
        fail("netlink");
    if (answer.head.nlmsg_type != NLMSG_ERROR || answer.error.error != 0) {
        errno = -answer.error.error;
        fail("no veth pair here");
    }
    close(fd);
}

static void bring_up(const char *name)
{
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_mtu = (int)(FRAME_BYTES_MAX - ETH_HLEN);
    if (fd < 0 || ioctl(fd, SIOCSIFMTU, &request) < 0)
        fail("cannot set the MTU");
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        fail("flags");
    request.ifr_flags |= IFF_UP | IFF_RUNNING | IFF_NOARP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        fail("cannot bring it up");
    close(fd);
}

static int open_packets(const char *name)
{
    const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(PROTOCOL)), size = BUFFER_BYTES;
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL), .sll_ifindex = (int)if_nametoindex(name)};
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0)
        fail("packet socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    return fd;
}

static int open_tap(const char *name)
{
    const int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    if (fd < 0)
        fail("/dev/net/tun");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        fail("no TAP here");
    return fd;
}

/* -- frames */

static uint8_t frame[FRAME_BYTES_MAX], answer[FRAME_BYTES_MAX];

/* Ours of the wanted number; 0: nothing came until `until_ns`. Others' frames, such as the kernel's own, are passed over. */
static ssize_t receive(int fd, bool spin, uint64_t until_ns)
{
    for (;;) {
        const ssize_t got = read(fd, answer, sizeof answer);
        if (got >= (ssize_t)FRAME_BYTES_MIN && answer[12] == PROTOCOL >> 8 && answer[13] == (PROTOCOL & 0xff))
            return got;
        if (got < 0 && errno != EAGAIN && errno != EINTR && errno != ENETDOWN)
            fail("read");
        const uint64_t now = clock_now_ns();
        if (now >= until_ns)
            return 0;
        if (got < 0 && !spin) {
            struct pollfd wait = {.fd = fd, .events = POLLIN};
            const struct timespec left = {(time_t)((until_ns - now) / 1000000000u), (long)((until_ns - now) % 1000000000u)};
            ppoll(&wait, 1, &left, NULL);
        }
    }
}

static bool transmit(int fd, uint32_t bytes, bool spin)
{
    while (write(fd, frame, bytes) < 0) {
        if (errno != EAGAIN && errno != ENOBUFS && errno != EINTR)
            fail("write");
        if (!spin)
            ppoll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, &(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return true;
}

static void serve(int fd, bool echo, bool spin, struct shared *shared)
{
    while (!atomic_load_explicit(&shared->over, memory_order_relaxed)) {
        const ssize_t got = receive(fd, spin, clock_now_ns() + 1000000u);
        if (got == 0)
            continue;
        atomic_fetch_add_explicit(&shared->received, 1, memory_order_relaxed);
        if (echo) {
            memcpy(frame, answer, (size_t)got);
            transmit(fd, (uint32_t)got, spin);
        }
    }
    getrusage(RUSAGE_SELF, &shared->served);
    exit(0);
}

static uint64_t used_ns(const struct rusage *of)
{
    return (uint64_t)(of->ru_utime.tv_sec + of->ru_stime.tv_sec) * 1000000000u +
           (uint64_t)(of->ru_utime.tv_usec + of->ru_stime.tv_usec) * 1000u;
}

int main(int argc, char **argv)
{
    const bool usable = argc == 8;
    const long bytes = usable ? atol(argv[2]) : 0;
    const double seconds = usable ? atof(argv[3]) : 0;
    const bool veth = usable && strcmp(argv[1], "veth") == 0, echo = usable && strcmp(argv[4], "exchange") == 0;
    const bool spin = usable && strcmp(argv[5], "spin") == 0;
    if (!usable || bytes < (long)FRAME_BYTES_MIN || bytes > (long)FRAME_BYTES_MAX || !(seconds > 0 && seconds < 3600)) {
        fprintf(stderr, "usage: frame_pair KIND FRAME_BYTES SECONDS MODE WAIT CLIENT_CPU SERVER_CPU\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    enter_namespaces();
    int client, server;
    if (veth) {
        make_veth("frames0", "frames1");
        bring_up("frames0");
        bring_up("frames1");
        client = open_packets("frames0");
        server = open_packets("frames1");
    } else {
        client = open_tap("frames0");
        bring_up("frames0");
        server = open_packets("frames0");
    }
    fcntl(client, F_SETFL, O_NONBLOCK);
    fcntl(server, F_SETFL, O_NONBLOCK);
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail("no memory");
    memset(frame, 0xff, 6);
    frame[6] = 2;
    frame[12] = PROTOCOL >> 8;
    frame[13] = PROTOCOL & 0xff;
    const pid_t peer = fork();
    if (peer < 0)
        fail("fork");
    if (peer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_on(atoi(argv[7]));
        serve(server, echo, spin, shared);
    }
    run_on(atoi(argv[6]));
    static struct histogram latency;
    uint64_t count = 0, lost = 0, number = 0, began = clock_now_ns();
    const uint64_t finish = began + (uint64_t)(seconds * 1e9);
    for (uint64_t now = began; now < finish;) {
        number++;
        memcpy(frame + 16, &number, sizeof number);
        const uint64_t before = clock_now_ns();
        transmit(client, (uint32_t)bytes, spin);
        bool ours = !echo;
        while (!ours && receive(client, spin, before + LOST_NS))
            ours = memcmp(answer + 16, &number, sizeof number) == 0;
        now = clock_now_ns();
        if (echo && ours)
            histogram_record(&latency, now - before);
        count += ours;
        lost += !ours;
    }
    const uint64_t took = clock_now_ns() - began;
    if (!echo) { /* what is in the buffers still arrives, outside of the time */
        const uint64_t wait = clock_now_ns() + GRACE_NS;
        count = atomic_load_explicit(&shared->received, memory_order_relaxed);
        while (clock_now_ns() < wait)
            continue;
        lost = number - atomic_load_explicit(&shared->received, memory_order_relaxed);
    }
    atomic_store_explicit(&shared->over, 1, memory_order_relaxed);
    waitpid(peer, NULL, 0);
    struct rusage asked;
    getrusage(RUSAGE_SELF, &asked);
    if (count == 0) {
        errno = 0;
        fail("no frame came through");
    }
    printf("{\"frames\": %llu, \"lost\": %llu, \"seconds\": %.9f, \"p50_ns\": %llu, \"p99_ns\": %llu, \"cpu_ns\": %llu}\n",
           (unsigned long long)count, (unsigned long long)lost, (double)took / 1e9,
           (unsigned long long)histogram_percentile(&latency, 50), (unsigned long long)histogram_percentile(&latency, 99),
           (unsigned long long)(used_ns(&asked) + used_ns(&shared->served)));
    return 0;
}
