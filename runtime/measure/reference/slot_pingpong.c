/* The floor under every request and reply: one 64-byte slot of shared memory that two pinned processes hand each other.
 *
 * usage: slot_pingpong ROUNDS [CPU_A CPU_B]      prints one JSON object
 *
 * The slot is one cache line: 56 bytes of payload and a turn counter. Odd turns belong to the server. Each side copies the
 * payload out, writes the next one, and hands the line over. Rounds are timed in blocks of ROUNDS_A_BLOCK, as Python's are, so
 * that reading the clock does not count. */
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

#define ROUNDS_A_BLOCK 16
#define WARM_UP_BLOCKS 2000

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

static void wait_for(const struct slot *slot, uint64_t turn)
{
    while (atomic_load_explicit(&slot->turn, memory_order_acquire) != turn)
        continue;
}

static void serve(struct slot *slot, uint64_t rounds)
{
    uint8_t payload[56];
    for (uint64_t i = 0; i < rounds; i++) {
        wait_for(slot, 2 * i + 1);
        memcpy(payload, slot->payload, 56);
        payload[0]++;
        memcpy(slot->payload, payload, 56);
        atomic_store_explicit(&slot->turn, 2 * i + 2, memory_order_release);
    }
}

static int by_value(const void *a, const void *b)
{
    const uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

int main(int argc, char **argv)
{
    const long blocks = argc > 1 ? atol(argv[1]) / ROUNDS_A_BLOCK : 20000;
    const int cpu_a = argc > 3 ? atoi(argv[2]) : 0, cpu_b = argc > 3 ? atoi(argv[3]) : 1;
    if (blocks < 1 || blocks > 10000000) {
        fprintf(stderr, "usage: slot_pingpong ROUNDS [CPU_A CPU_B]\n");
        return 2;
    }
    struct slot *slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t *took_ns = malloc((size_t)blocks * sizeof *took_ns);
    if (slot == MAP_FAILED || !took_ns)
        return 2;
    uint8_t payload[56] = {0};
    const uint64_t rounds = (uint64_t)(blocks + WARM_UP_BLOCKS) * ROUNDS_A_BLOCK;
    const pid_t server = fork();
    if (server < 0)
        return 2;
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(cpu_b);
        serve(slot, rounds);
        _exit(0);
    }
    pin(cpu_a);
    uint64_t turn = 0;
    for (long block = -WARM_UP_BLOCKS; block < blocks; block++) {
        const uint64_t start_ns = now_ns();
        for (int i = 0; i < ROUNDS_A_BLOCK; i++) {
            memcpy(slot->payload, payload, 56);
            atomic_store_explicit(&slot->turn, ++turn, memory_order_release);
            wait_for(slot, ++turn);
            memcpy(payload, slot->payload, 56);
        }
        if (block >= 0)
            took_ns[block] = now_ns() - start_ns;
    }
    int status = 0;
    waitpid(server, &status, 0);
    qsort(took_ns, (size_t)blocks, sizeof *took_ns, by_value);
    printf("{\"exchanges\": %ld", blocks * ROUNDS_A_BLOCK);
    static const int percents[] = {10, 50, 90, 99};
    for (int i = 0; i < 4; i++)
        printf(", \"p%d_ns\": %.1f", percents[i], (double)took_ns[(blocks - 1) * percents[i] / 100] / ROUNDS_A_BLOCK);
    printf("}\n");
    return status == 0 && payload[0] == (uint8_t)rounds ? 0 : 1;
}
