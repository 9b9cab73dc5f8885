/* The head of a storage message, as bytes; message_wire.py says the rest. No Python.
 *
 *   head (24 bytes) | packet (64 bytes, of which packet_bytes count) | inline_bytes of data */
#ifndef PARTVISOR_MESSAGE_WIRE_H
#define PARTVISOR_MESSAGE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storvsp.h"

#define MESSAGE_REQUEST 1u
#define MESSAGE_REPLY 2u
#define MESSAGE_SETTLED 3u
#define MESSAGE_FIRST 1u /* flag */
#define MESSAGE_DATA_BYTES_MAX (256u * 1024u)
#define MESSAGE_PACKET_BYTES_MIN 48u /* of a client older than 5.1 */

struct message_head {
    uint64_t transaction_id;
    uint32_t area_bytes, inline_bytes;
    uint16_t kind, packet_bytes, flags, reserved;
};
_Static_assert(sizeof(struct message_head) == 24, "wire size");
_Static_assert(offsetof(struct message_head, kind) == 16, "wire offset");

/* Transaction ids are the client's choice, but one that passes on what stands in a ring, and has successors, numbers what it
 * does for a request of the ring, its turn, so that a successor's numbers for the same are the same:
 *
 *   63      62..44    43..32                            31..0
 *   1       opening   step: messages of this turn       sequence: of turns of this opening of the ring, from 1 on */
#define MESSAGE_TURN (1ull << 63)
#define MESSAGE_OPENING_SHIFT 44u
#define MESSAGE_OPENING_MASK 0x7FFFFu
#define MESSAGE_STEP_SHIFT 32u
#define MESSAGE_STEPS 4096u

static inline uint64_t message_turn(uint64_t opening, uint32_t sequence)
{
    return MESSAGE_TURN | (opening & MESSAGE_OPENING_MASK) << MESSAGE_OPENING_SHIFT | sequence;
}

/* Whether `id` is a step of the same turn as `last`, and not after it. */
static inline bool message_is_not_after(uint64_t id, uint64_t last)
{
    const uint64_t steps = (uint64_t)(MESSAGE_STEPS - 1) << MESSAGE_STEP_SHIFT;
    return (id & last & MESSAGE_TURN) && (id & ~steps) == (last & ~steps) && (id & steps) <= (last & steps);
}

#define MESSAGE_BYTES_MIN (sizeof(struct message_head) + STORVSP_PACKET_BYTES)

/* Whether these are a message's numbers. head: a private copy; received_bytes: of the whole message, at least
 * MESSAGE_BYTES_MIN. MessageHead.decode() decides the same. */
static inline bool message_head_is_valid(const struct message_head *head, size_t received_bytes)
{
    return head->kind >= MESSAGE_REQUEST && head->kind <= MESSAGE_SETTLED && head->area_bytes <= MESSAGE_DATA_BYTES_MAX
           && head->inline_bytes <= head->area_bytes && received_bytes == MESSAGE_BYTES_MIN + head->inline_bytes
           && head->packet_bytes >= MESSAGE_PACKET_BYTES_MIN && head->packet_bytes <= STORVSP_PACKET_BYTES;
}

#endif
