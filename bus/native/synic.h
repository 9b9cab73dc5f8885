/* SynIC pages: what must be atomic in them. Layouts and rules: TLFS, "Inter-Partition Communication".
 *
 *   SIM page   16 slots of 256 bytes: @0 u32 type (0: empty), @4 u8 payload size, @5 u8 flags (bit 0: more are pending),
 *              @8 u64 sender, @16 payload, up to 240 bytes
 *   SIEF page  16 x 2048 flags; flag n of the page is bit n % 8 of byte n / 8 */
#ifndef PARTVISOR_SYNIC_H
#define PARTVISOR_SYNIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SYNIC_PAGE_BYTES 4096u
#define SYNIC_SINTS 16u
#define SYNIC_SLOT_BYTES 256u
#define SYNIC_PAYLOAD_MAX_BYTES 240u
#define SYNIC_FLAGS_PER_SINT 2048u
#define SYNIC_FLAGS (SYNIC_SINTS * SYNIC_FLAGS_PER_SINT)
#define SYNIC_MESSAGE_PENDING 1u

struct synic_slot {
    _Atomic uint32_t type;
    uint8_t payload_bytes;
    _Atomic uint8_t flags;
    uint16_t reserved;
    uint64_t sender;
    uint8_t payload[SYNIC_PAYLOAD_MAX_BYTES];
};
_Static_assert(sizeof(struct synic_slot) == SYNIC_SLOT_BYTES, "wire size");

struct synic_message {
    uint32_t type;
    uint32_t payload_bytes;
    uint64_t sender;
    uint8_t payload[SYNIC_PAYLOAD_MAX_BYTES];
};

/* The hypervisor's side, which alone fills slots: whether a message would find a place now. Nothing is set. */
bool synic_slot_is_free(void *sim_page, uint32_t sint);

/* False: the slot is occupied; its pending flag is set, so its owner will write EOM. */
bool synic_post_message(void *sim_page, uint32_t sint, const struct synic_message *message);

/* The VP's side. False: empty. A size beyond the slot, which only a scribbler can cause, is cut to 240 bytes. */
bool synic_take_message(void *sim_page, uint32_t sint, struct synic_message *message, bool *eom_owed);

/* True: the flag was clear, so the line must be raised. flag < SYNIC_FLAGS. */
static inline bool synic_flag_set(void *sief_page, uint32_t flag)
{
    _Atomic uint8_t *byte = (_Atomic uint8_t *)sief_page + flag / 8;
    const uint8_t bit = (uint8_t)(1u << flag % 8);
    return !(atomic_fetch_or_explicit(byte, bit, memory_order_seq_cst) & bit);
}

/* True: the flag was set. A full barrier when it was: what its setter did before is visible.
 * The clear flag is left alone, without a locked operation: if it is set just afterwards, the line is raised as well. */
static inline bool synic_flag_take(void *sief_page, uint32_t flag)
{
    _Atomic uint8_t *byte = (_Atomic uint8_t *)sief_page + flag / 8;
    const uint8_t bit = (uint8_t)(1u << flag % 8);
    if (!(atomic_load_explicit(byte, memory_order_acquire) & bit))
        return false;
    return atomic_fetch_and_explicit(byte, (uint8_t)~bit, memory_order_seq_cst) & bit;
}

/* Clears all flags of one SINT; writes the numbers of those that were set (0..2047) and returns how many. */
uint32_t synic_flags_take_all(void *sief_page, uint32_t sint, uint16_t numbers[SYNIC_FLAGS_PER_SINT]);

#endif
