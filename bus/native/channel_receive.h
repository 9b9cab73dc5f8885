/* What all receiving methods of Channel have in common. A packet is held, that is, read_index stays before it, until it is
 * released. */
#ifndef PARTVISOR_CHANNEL_RECEIVE_H
#define PARTVISOR_CHANNEL_RECEIVE_H

#include "channel.h"

/* The next packet's descriptor, after waiting for it. 1: found; 0: the timeout passed; -1: an exception is set. */
__attribute__((visibility("hidden"))) int channel_next_packet(struct channel *channel, struct ring_packet *packet,
                                                              int64_t timeout_ns);

/* Apart, so that an end that nobody traces has one look at a pointer here, and nothing else. */
__attribute__((noinline, cold, visibility("hidden"))) void channel_stamp_found(struct channel *channel,
                                                                               const struct ring_packet *packet);

static inline void channel_hold(struct channel *channel, const struct ring_packet *packet)
{
    if (TRACE_COMPILED && __builtin_expect(channel->endpoint.trace != NULL, 0))
        channel_stamp_found(channel, packet);
    ring_hold(&channel->endpoint.reader, packet);
    channel->ends[(uint8_t)(channel->oldest + channel->held++)] = channel->endpoint.reader.next_out;
    channel->endpoint.statistics.packets_received++;
    channel->endpoint.statistics.bytes_received += packet->payload_bytes;
}

#endif
