#include "synic.h"

#include <assert.h>
#include <string.h>

static struct synic_slot *slot_of(void *sim_page, uint32_t sint)
{
    assert(sint < SYNIC_SINTS);
    return (struct synic_slot *)sim_page + sint;
}

bool synic_slot_is_free(void *sim_page, uint32_t sint)
{
    return atomic_load_explicit(&slot_of(sim_page, sint)->type, memory_order_acquire) == 0;
}

/* ORDER pending: we set the flag, then look at the type again; the VP empties the slot, then looks at the flag. One fence
 *   comes first, so the VP sees the flag and writes EOM, or we see the slot empty. Without them a queued message waits for
 *   an EOM that nobody owes. */
bool synic_post_message(void *sim_page, uint32_t sint, const struct synic_message *message)
{
    struct synic_slot *slot = slot_of(sim_page, sint);
    assert(message->type != 0 && message->payload_bytes <= SYNIC_PAYLOAD_MAX_BYTES);
    if (atomic_load_explicit(&slot->type, memory_order_acquire) != 0) {
        atomic_fetch_or_explicit(&slot->flags, SYNIC_MESSAGE_PENDING, memory_order_seq_cst);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&slot->type, memory_order_acquire) != 0)
            return false;
    }
    slot->payload_bytes = (uint8_t)message->payload_bytes;
    atomic_store_explicit(&slot->flags, 0, memory_order_relaxed);
    slot->reserved = 0;
    slot->sender = message->sender;
    memcpy(slot->payload, message->payload, message->payload_bytes);
    atomic_store_explicit(&slot->type, message->type, memory_order_release); /* last: it makes the rest valid */
    return true;
}

bool synic_take_message(void *sim_page, uint32_t sint, struct synic_message *message, bool *eom_owed)
{
    struct synic_slot *slot = slot_of(sim_page, sint);
    message->type = atomic_load_explicit(&slot->type, memory_order_acquire);
    if (message->type == 0)
        return false;
    const uint8_t bytes = *(volatile uint8_t *)&slot->payload_bytes;
    message->payload_bytes = bytes > SYNIC_PAYLOAD_MAX_BYTES ? SYNIC_PAYLOAD_MAX_BYTES : bytes;
    message->sender = slot->sender;
    memcpy(message->payload, slot->payload, message->payload_bytes);
    atomic_store_explicit(&slot->type, 0, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* ORDER pending */
    *eom_owed = atomic_load_explicit(&slot->flags, memory_order_relaxed) & SYNIC_MESSAGE_PENDING;
    return true;
}

uint32_t synic_flags_take_all(void *sief_page, uint32_t sint, uint16_t numbers[SYNIC_FLAGS_PER_SINT])
{
    assert(sint < SYNIC_SINTS);
    _Atomic uint64_t *words = (_Atomic uint64_t *)sief_page + sint * (SYNIC_FLAGS_PER_SINT / 64);
    uint32_t count = 0;
    for (uint32_t i = 0; i < SYNIC_FLAGS_PER_SINT / 64; i++) {
        if (atomic_load_explicit(&words[i], memory_order_relaxed) == 0)
            continue;
        uint64_t word = atomic_exchange_explicit(&words[i], 0, memory_order_seq_cst);
        for (; word; word &= word - 1)
            numbers[count++] = (uint16_t)(i * 64 + (uint32_t)__builtin_ctzll(word));
    }
    return count;
}
