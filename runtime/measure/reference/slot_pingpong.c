/* The floor under every request and reply: one 64-byte slot of shared memory that two pinned processes hand each other.
 *
 * usage: slot_pingpong ROUNDS [CPU_A CPU_B]      prints one JSON object
 *
 * The slot is one cache line: 56 bytes of payload and a turn counter. Odd turns belong to the server. Each side copies the
 * payload out, writes the next one, and hands the line over. Rounds are timed one by one with CLOCK_MONOTONIC; the cost of
 * reading that clock is printed beside them and not subtracted. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP_ROUNDS 20000

struct slot {
    uint8_t payload[56];
    _Atomic uint64_t turn;
};
_Static_assert(sizeof(struct slot) == 64, "one cache line");

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0) {
        fprintf(stderr, "slot_pingpong: cannot run on processor %d: %s\n", cpu, strerror(errno));
        exit(2);
    }
}

static void take_and_pass(struct slot *slot, uint64_t turn, uint8_t payload[56])
{
    while (atomic_load_explicit(&slot->turn, memory_order_acquire) != turn)
        continue;
    memcpy(payload, slot->payload, 56);
    payload[0]++;
    memcpy(slot->payload, payload, 56);
    atomic_store_explicit(&slot->turn, turn + 1, memory_order_release);
}

static int by_value(const void *a, const void *b)
{
    const uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? atol(argv[1]) : 200000;
    const int cpu_a = argc > 3 ? atoi(argv[2]) : 0, cpu_b = argc > 3 ? atoi(argv[3]) : 1;
    if (rounds < 1 || rounds > 100000000) {
        fprintf(stderr, "usage: slot_pingpong ROUNDS [CPU_A CPU_B]\n");
        return 2;
    }
    struct slot *slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t *took_ns = malloc((size_t)rounds * sizeof *took_ns);
    if (slot == MAP_FAILED || !took_ns)
        return 2;
    uint8_t payload[56] = {0};
    const uint64_t turns = (uint64_t)(rounds + WARM_UP_ROUNDS);
    const pid_t server = fork();
    if (server < 0)
        return 2;
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(cpu_b);
        for (uint64_t i = 0; i < turns; i++)
            take_and_pass(slot, 2 * i + 1, payload);
        _exit(0);
    }
    pin(cpu_a);
    for (uint64_t i = 0; i < turns; i++) {
        const uint64_t start_ns = now_ns();
        memcpy(slot->payload, payload, 56);
        atomic_store_explicit(&slot->turn, 2 * i + 1, memory_order_release);
        while (atomic_load_explicit(&slot->turn, memory_order_acquire) != 2 * i + 2)
            continue;
        memcpy(payload, slot->payload, 56);
        if (i >= WARM_UP_ROUNDS)
            took_ns[i - WARM_UP_ROUNDS] = now_ns() - start_ns;
    }
    int status = 0;
    waitpid(server, &status, 0);
    const uint64_t clock_from = now_ns();
    for (int i = 0; i < 1000; i++)
        now_ns();
    const double clock_ns = (double)(now_ns() - clock_from) / 1001;
    qsort(took_ns, (size_t)rounds, sizeof *took_ns, by_value);
#define PERCENTILE(p) (unsigned long long)took_ns[(size_t)((double)(rounds - 1) * (p) / 100.0)]
    printf("{\"rounds\": %ld, \"p10_ns\": %llu, \"p50_ns\": %llu, \"p90_ns\": %llu, \"p99_ns\": %llu, \"clock_ns\": %.1f}\n",
           rounds, PERCENTILE(10), PERCENTILE(50), PERCENTILE(90), PERCENTILE(99), clock_ns);
    return status == 0 && payload[0] == (uint8_t)turns ? 0 : 1;
}
