/* The same ring, driven from C: what Python is measured against.
 *
 * usage: ring_c overhead PACKETS                       one thread: write + read of a 64-byte packet, beside a locked add
 *        ring_c stream PACKETS BYTES BATCH CPU_A CPU_B  two pinned processes, one way, publishing every BATCH packets
 *        ring_c checksum PACKETS BYTES CPU_A CPU_B      the same one by one; the reader checksums in place, copying nothing
 *
 * Prints one JSON object. Built together with bus/native/ring.c and crc32c.c. */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "crc32c.h"
#include "ring.h"

#define SMALL_BYTES 64u
#define OVERHEAD_RING_BYTES 65536u
#define STREAM_RING_BYTES 262144u
#define READ_AT_ONCE 256u /* packets, at most, between two releases */
#define PAUSES_WHEN_EMPTY 20
#define LOCKED_ADDS 2000000

static void fail(const char *what)
{
    fprintf(stderr, "ring_c: %s\n", what);
    exit(1);
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        fail("cannot run on the processor asked for");
}

static void *new_ring(uint32_t data_bytes)
{
    void *ring = mmap(NULL, RING_PAGE_BYTES + data_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED)
        fail("no memory");
    return ring;
}

static void overhead(long packets)
{
    void *ring = new_ring(OVERHEAD_RING_BYTES);
    struct ring_writer writer;
    struct ring_reader reader;
    struct ring_packet packet;
    if (ring_writer_attach(&writer, ring, OVERHEAD_RING_BYTES) != RING_OK
        || ring_reader_attach(&reader, ring, OVERHEAD_RING_BYTES) != RING_OK)
        fail("attach");
    uint8_t in[SMALL_BYTES] = {0}, out[SMALL_BYTES];
    ring_mask(&reader);
    const uint64_t start_ns = clock_now_ns();
    for (long i = 0; i < packets; i++) {
        if (ring_write(&writer, RING_PACKET_IN_BAND, 0, (uint64_t)i, NULL, 0, in, SMALL_BYTES) != RING_OK
            || ring_publish(&writer) || ring_peek(&reader, &packet) != RING_OK || packet.payload_bytes != SMALL_BYTES)
            fail("overhead");
        ring_copy_out(&reader, packet.payload_at, out, SMALL_BYTES);
        ring_hold(&reader, &packet);
        if (ring_release(&reader) || packet.transaction_id != (uint64_t)i || memcmp(in, out, 8) != 0)
            fail("overhead");
    }
    const double packet_ns = (double)(clock_now_ns() - start_ns) / (double)packets;
    static volatile uint64_t counter;
    const uint64_t add_ns = clock_now_ns();
    for (long i = 0; i < LOCKED_ADDS; i++)
        __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
    printf("{\"write_read_ns\": %.3f, \"locked_add_ns\": %.3f}\n", packet_ns,
           (double)(clock_now_ns() - add_ns) / LOCKED_ADDS);
}

static void write_all(void *ring, long packets, uint32_t bytes, long batch)
{
    struct ring_writer writer;
    if (ring_writer_attach(&writer, ring, STREAM_RING_BYTES) != RING_OK)
        fail("attach");
    uint8_t *payload = calloc(1, bytes);
    if (!payload)
        fail("no memory");
    long staged = 0;
    for (long i = 0; i < packets;) {
        if (ring_write(&writer, RING_PACKET_IN_BAND, 0, (uint64_t)i, NULL, 0, payload, bytes) == RING_OK) {
            i++;
            if (++staged < batch && i < packets)
                continue;
        } else {
            clock_relax();
        }
        staged = 0;
        ring_publish(&writer);
    }
    free(payload);
}

static void read_all(void *ring, long packets, uint32_t bytes, bool checksum)
{
    struct ring_reader reader;
    struct ring_packet packet;
    if (ring_reader_attach(&reader, ring, STREAM_RING_BYTES) != RING_OK)
        fail("attach");
    ring_mask(&reader);
    uint8_t *target = malloc(bytes);
    if (!target)
        fail("no memory");
    uint32_t held = 0;
    for (long i = 0; i < packets;) {
        const enum ring_status status = ring_peek(&reader, &packet);
        if (status == RING_OK && packet.payload_bytes >= bytes) {
            if (checksum) {
                const uint32_t to_end = reader.size_bytes - packet.payload_at, first = bytes < to_end ? bytes : to_end;
                const uint32_t value = crc32c(0, reader.data + packet.payload_at, first);
                target[0] = (uint8_t)crc32c(value, reader.data, bytes - first);
            } else {
                ring_copy_out(&reader, packet.payload_at, target, bytes);
            }
            ring_hold(&reader, &packet);
            i++;
            if (++held < READ_AT_ONCE && held * packet.total_bytes < STREAM_RING_BYTES / 4)
                continue;
        } else if (status != RING_EMPTY) {
            fail("the ring is corrupt");
        }
        held = 0;
        ring_release(&reader);
        /* An impatient reader takes the header's cache line away from the writer again and again. */
        for (unsigned i = 0; status == RING_EMPTY && i < PAUSES_WHEN_EMPTY; i++)
            clock_relax();
    }
    ring_release(&reader);
    free(target);
}

static void stream(long packets, uint32_t bytes, long batch, bool checksum, int cpu_a, int cpu_b)
{
    void *ring = new_ring(STREAM_RING_BYTES);
    crc32c_prepare();
    const pid_t reader = fork();
    if (reader < 0)
        fail("cannot fork");
    if (reader == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(cpu_b);
        read_all(ring, packets, bytes, checksum);
        _exit(0);
    }
    pin(cpu_a);
    const uint64_t start_ns = clock_now_ns();
    write_all(ring, packets, bytes, batch);
    int status;
    waitpid(reader, &status, 0);
    const double seconds = (double)(clock_now_ns() - start_ns) / 1e9;
    if (status != 0)
        fail("the reader failed");
    printf("{\"packets_per_s\": %.0f, \"bytes_per_s\": %.0f}\n", (double)packets / seconds,
           (double)packets * bytes / seconds);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    const long packets = argc > 2 ? atol(argv[2]) : 0, bytes = argc > 3 ? atol(argv[3]) : 0;
    if (packets < 1)
        fail("usage: ring_c overhead|stream|checksum PACKETS ...");
    if (strcmp(what, "overhead") == 0 && argc == 3)
        overhead(packets);
    else if (bytes < 8 || bytes > 65536 || bytes % 8 != 0)
        fail("BYTES: a multiple of 8 up to 65536");
    else if (strcmp(what, "stream") == 0 && argc == 7 && atol(argv[4]) > 0)
        stream(packets, (uint32_t)bytes, atol(argv[4]), false, atoi(argv[5]), atoi(argv[6]));
    else if (strcmp(what, "checksum") == 0 && argc == 6)
        stream(packets, (uint32_t)bytes, 1, true, atoi(argv[4]), atoi(argv[5]));
    else
        fail("usage: ring_c overhead|stream|checksum PACKETS ...");
    return 0;
}
