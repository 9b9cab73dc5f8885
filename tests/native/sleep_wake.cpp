// Does anybody ever sleep beside work? bus/native/ring.h under Relacy, which simulates the C11 memory model.
//
//   sleep_wake ITERATIONS        random interleavings of each scenario; exit status 1 if one went wrong
//
// Doorbells are semaphores. A lost wake-up leaves a thread in wait() for ever, which Relacy reports as a deadlock; a
// packet seen before its bytes, or bytes overwritten before they were read, as a data race on `content`.
#define RING_MODEL_ATOMICS "model_atomics.hpp"
#include "ring.h"

#include "ring.c"

namespace {

constexpr uint32_t ring_bytes = 4096;
using bell_type = rl::semaphore<struct bell_tag>;

struct shared_ring {
    ring_header header;
    alignas(8) uint8_t data[ring_bytes];
    bell_type reader_bell, writer_bell;

    void prepare()
    {
        header.in.store(0, rl::mo_relaxed, $);
        header.out.store(0, rl::mo_relaxed, $);
        header.interrupt_mask.store(1, rl::mo_relaxed, $);
        header.pending_send_bytes.store(0, rl::mo_relaxed, $);
        header.feature_bits.store(RING_FEATURE_PENDING_SEND, rl::mo_relaxed, $);
        reader_bell.init(false, 0, 1000, $);
        writer_bell.init(false, 0, 1000, $);
    }

    void finish()
    {
        reader_bell.deinit($);
        writer_bell.deinit($);
    }

    ring_writer writer()
    {
        ring_writer made = {};
        made.header = &header;
        made.data = data;
        made.size_bytes = ring_bytes;
        return made;
    }

    ring_reader reader()
    {
        ring_reader made = {};
        made.header = &header;
        made.data = data;
        made.size_bytes = ring_bytes;
        return made;
    }
};

void ring_bell(bell_type& bell)
{
    unsigned before = 0;
    bell.post(1, before, $);
}

// As endpoint.c does it: look, unmask, look again, sleep.
void wait_for_data(shared_ring& ring, ring_reader& reader, ring_packet& packet)
{
    while (ring_peek(&reader, &packet) == RING_EMPTY) {
        if (ring_unmask(&reader) == RING_EMPTY)
            ring.reader_bell.wait(false, false, $);
        ring_mask(&reader);
    }
}

// Two packets, one by one, to a reader that sleeps whenever it finds nothing.
struct data_wakes_the_reader : rl::test_suite<data_wakes_the_reader, 2> {
    static constexpr uint64_t packets = 2;
    shared_ring ring;
    rl::var<uint64_t> content[packets];

    void before() { ring.prepare(); }
    void after() { ring.finish(); }

    void thread(unsigned index)
    {
        if (index == 0) {
            ring_writer writer = ring.writer();
            for (uint64_t i = 0; i < packets; i++) {
                content[i]($) = i + 7;
                RL_ASSERT(ring_write(&writer, RING_PACKET_IN_BAND, 0, i, nullptr, 0, &i, 8) == RING_OK);
                if (ring_publish(&writer))
                    ring_bell(ring.reader_bell);
            }
        } else {
            ring_reader reader = ring.reader();
            ring_packet packet;
            for (uint64_t i = 0; i < packets; i++) {
                wait_for_data(ring, reader, packet);
                RL_ASSERT(packet.transaction_id == i);
                RL_ASSERT(uint64_t(content[i]($)) == i + 7);
                ring_hold(&reader, &packet);
                if (ring_release(&reader))
                    ring_bell(ring.writer_bell);
            }
        }
    }
};

// Packets of which the ring takes one at a time, so that the writer has to sleep for space, and the reader for data.
struct space_wakes_the_writer : rl::test_suite<space_wakes_the_writer, 2> {
    static constexpr uint64_t packets = 3;
    static constexpr uint32_t payload_bytes = 2400;
    shared_ring ring;
    rl::var<uint64_t> content; // of the packet in the ring: one at a time

    void before() { ring.prepare(); }
    void after() { ring.finish(); }

    void thread(unsigned index)
    {
        static uint8_t payload[payload_bytes];
        if (index == 0) {
            ring_writer writer = ring.writer();
            const uint32_t total = uint32_t(ring_packet_bytes(0, payload_bytes));
            for (uint64_t i = 0; i < packets; i++) {
                while (ring_writable_cached(&writer) < total) {
                    if (ring_want_space(&writer, total) == RING_FULL)
                        ring.writer_bell.wait(false, false, $);
                }
                ring_want_no_space(&writer);
                content($) = i;
                RL_ASSERT(ring_write(&writer, RING_PACKET_IN_BAND, 0, i, nullptr, 0, payload, payload_bytes) == RING_OK);
                if (ring_publish(&writer))
                    ring_bell(ring.reader_bell);
            }
        } else {
            ring_reader reader = ring.reader();
            ring_packet packet;
            for (uint64_t i = 0; i < packets; i++) {
                wait_for_data(ring, reader, packet);
                RL_ASSERT(packet.transaction_id == i);
                RL_ASSERT(uint64_t(content($)) == i);
                ring_hold(&reader, &packet);
                if (ring_release(&reader))
                    ring_bell(ring.writer_bell);
            }
        }
    }
};

template <typename scenario> bool holds(const char* name, unsigned iterations)
{
    rl::test_params params;
    params.search_type = rl::random_scheduler_type;
    params.iteration_count = iterations;
    params.execution_depth_limit = 2000;
    const bool ok = rl::simulate<scenario>(params);
    std::cout << name << ": " << (ok ? "holds in " : "broken, found at iteration ")
              << (ok ? params.iteration_count : params.stop_iteration) << (ok ? " interleavings" : "") << std::endl;
    return ok;
}

} // namespace

int main(int argc, char** argv)
{
    const unsigned iterations = argc > 1 ? unsigned(std::atoi(argv[1])) : 20000;
    const bool data = holds<data_wakes_the_reader>("data wakes the reader", iterations);
    const bool space = holds<space_wakes_the_writer>("space wakes the writer", iterations);
    return data && space ? 0 : 1;
}
