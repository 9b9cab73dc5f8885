/* Two threads, one ring, as fast as they can: does a sleeper ever miss what it sleeps for?
 *
 * usage: ring_stress SECONDS [SEED]       exit status 1 if a wake-up was lost or a packet was damaged
 *
 * Sleeping is played: a sleeper waits until its doorbell, a counter, moves. So both sides pass the dangerous place, one
 * publishing while the other says that it will sleep, millions of times a second. A wait of SILENCE_NS beside work is a
 * lost wake-up; real sleeps are never that long here, for the other side always has something to do.
 *
 * Compiled with -DWITHOUT_FENCE it must fail, also on x86: a store to write_index waits in the store buffer while the load
 * of the mask behind it is already done. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "clock.h"
#include "ring.h"

#define DATA_BYTES 4096u
#define PAYLOAD_WORDS_MAX 24u
#define SILENCE_NS 2000000000u
#define LOOKS_PER_CLOCK 1024u

struct side {
    _Alignas(128) _Atomic uint64_t bell;
    uint64_t sleeps;
};

static _Alignas(4096) uint8_t memory[RING_PAGE_BYTES + DATA_BYTES];
static struct side reader_side, writer_side;
static _Atomic bool stop;
static uint64_t packets_written; /* published by the last release of write_index, and joined */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void fail(const char *what)
{
    printf("%s\n", what);
    exit(1);
}

static void ring_bell(struct side *side)
{
    atomic_fetch_add_explicit(&side->bell, 1, memory_order_release);
}

/* Sleep until the bell rings. False: the other side says that all is over, or nothing was heard for far too long. */
static bool sleep_for_bell(struct side *side, uint64_t heard, bool *silent)
{
    side->sleeps++;
    const uint64_t start_ns = clock_now_ns();
    for (uint64_t looks = 1;; looks++) {
        if (atomic_load_explicit(&side->bell, memory_order_acquire) != heard)
            return true;
        if (looks % LOOKS_PER_CLOCK == 0) {
            sched_yield();
            *silent = clock_now_ns() - start_ns > SILENCE_NS;
            if (*silent || atomic_load(&stop))
                return false;
        }
    }
}

static void *write_packets(void *seed)
{
    uint64_t random = *(uint64_t *)seed, payload[PAYLOAD_WORDS_MAX], id = 0;
    struct ring_writer writer;
    if (ring_writer_attach(&writer, memory, DATA_BYTES) != RING_OK)
        fail("the writer cannot attach");
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        const uint32_t words = 1 + (uint32_t)(next_random(&random) % PAYLOAD_WORDS_MAX);
        for (uint32_t i = 0; i < words; i++)
            payload[i] = id * 31 + i;
        const uint32_t total = (uint32_t)ring_packet_bytes(0, words * 8);
        while (ring_write(&writer, RING_PACKET_IN_BAND, 0, id, NULL, 0, payload, words * 8) != RING_OK) {
            if (ring_publish(&writer)) /* what a batch staged before it met the full ring */
                ring_bell(&reader_side);
            bool silent = false;
            const uint64_t heard = atomic_load_explicit(&writer_side.bell, memory_order_acquire);
            const enum ring_status status = ring_want_space(&writer, total);
            if (status == RING_CORRUPT)
                fail("the writer found a corrupt ring");
            if (status == RING_FULL && !sleep_for_bell(&writer_side, heard, &silent)) {
                if (silent && ring_writer_refresh(&writer) == RING_OK && ring_writable_cached(&writer) >= total)
                    fail("lost wake-up: the writer slept beside free space");
                packets_written = id;
                return NULL;
            }
            ring_want_no_space(&writer);
        }
        id++;
        if (next_random(&random) % 4 && ring_publish(&writer))
            ring_bell(&reader_side);
        /* Now and then the writer pauses, so that the reader gets to sleep; seldom for long. */
        for (uint64_t pause = next_random(&random) % 64; pause > 32; pause--)
            clock_relax();
    }
    if (ring_publish(&writer))
        ring_bell(&reader_side);
    packets_written = id;
    return NULL;
}

static uint64_t read_packets(uint64_t deadline_ns)
{
    uint64_t payload[PAYLOAD_WORDS_MAX], expected = 0;
    struct ring_reader reader;
    struct ring_packet packet;
    if (ring_reader_attach(&reader, memory, DATA_BYTES) != RING_OK)
        fail("the reader cannot attach");
    ring_mask(&reader);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        const enum ring_status status = ring_peek(&reader, &packet);
        if (status == RING_CORRUPT)
            fail("the reader found a corrupt ring");
        if (status == RING_OK) {
            if (packet.payload_bytes > sizeof payload)
                fail("a packet was damaged");
            ring_copy_out(&reader, packet.payload_at, payload, packet.payload_bytes);
            for (uint32_t i = 0; i < packet.payload_bytes / 8; i++)
                if (payload[i] != expected * 31 + i || packet.transaction_id != expected)
                    fail("a packet was damaged");
            expected++;
            ring_hold(&reader, &packet);
            if (ring_release(&reader))
                ring_bell(&writer_side);
            if (expected % 4096 == 0 && clock_now_ns() > deadline_ns)
                break;
            continue;
        }
        bool silent = false;
        const uint64_t heard = atomic_load_explicit(&reader_side.bell, memory_order_acquire);
        if (ring_unmask(&reader) == RING_EMPTY && !sleep_for_bell(&reader_side, heard, &silent)) {
            if (silent && ring_reader_refresh(&reader) == RING_OK)
                fail("lost wake-up: the reader slept beside a packet");
            break;
        }
        ring_mask(&reader);
    }
    atomic_store(&stop, true);
    return expected;
}

int main(int argc, char **argv)
{
    const double seconds = argc > 1 ? atof(argv[1]) : 5;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    pthread_t thread;
    if (seconds <= 0 || seed == 0) {
        fprintf(stderr, "usage: ring_stress SECONDS [SEED, not 0]\n");
        return 2;
    }
    const uint64_t start_ns = clock_now_ns();
    if (pthread_create(&thread, NULL, write_packets, &seed) != 0)
        fail("cannot start a thread");
    const uint64_t packets = read_packets(start_ns + (uint64_t)(seconds * 1e9));
    pthread_join(thread, NULL);
    printf("%llu packets, %llu of them read; the reader slept %llu times, the writer %llu times; nothing lost\n",
           (unsigned long long)packets_written, (unsigned long long)packets, (unsigned long long)reader_side.sleeps,
           (unsigned long long)writer_side.sleeps);
    return 0;
}
