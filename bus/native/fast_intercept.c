#include "fast_intercept.h"

#include <string.h>

#include "synic.h"

#define PORTS 0x10000u
#define TYPE_IO_PORT 0u                        /* HV_INTERCEPT_TYPE_X64_IO_PORT */
#define MESSAGE_PORT_INTERCEPT 0x80010000u     /* HV_MESSAGE_TYPE_X64_IO_PORT_INTERCEPT */
#define INTERCEPT_SINT 0u
#define LONG_MODE (1u << 2 | 1u << 4)          /* as bus/intercept_messages.py has it, and so are the segments */

/* -- packets: MessagePack, as much of it as an array of a number and a map of numbers needs ---------------------------- */

struct cursor {
    const uint8_t *at, *end;
};

static bool take_byte(struct cursor *cursor, uint8_t *byte)
{
    if (cursor->at == cursor->end)
        return false;
    *byte = *cursor->at++;
    return true;
}

static bool take_number(struct cursor *cursor, uint64_t *value)
{
    uint8_t head;
    if (!take_byte(cursor, &head))
        return false;
    if (head < 0x80) {
        *value = head;
        return true;
    }
    if (head < 0xCC || head > 0xCF) /* uint 8 to uint 64 */
        return false;
    *value = 0;
    for (uint32_t left = 1u << (head - 0xCC); left; left--) {
        uint8_t byte;
        if (!take_byte(cursor, &byte))
            return false;
        *value = *value << 8 | byte;
    }
    return true;
}

static int argument_named(const uint8_t *text, size_t bytes)
{
    static const char *const names[FAST_ARGUMENTS] = {"vp", "port", "size", "write", "value", "partition", "type"};
    for (int i = 0; i < FAST_ARGUMENTS; i++)
        if (strlen(names[i]) == bytes && memcmp(names[i], text, bytes) == 0)
            return i;
    return -1;
}

bool fast_decode(struct fast_call *call, const uint8_t *packet, size_t bytes)
{
    struct cursor cursor = {packet, packet + bytes};
    uint8_t array, map;
    call->given = 0;
    if (!take_byte(&cursor, &array) || array != 0x92 || !take_number(&cursor, &call->code) || !take_byte(&cursor, &map)
        || (map & 0xF0) != 0x80)
        return false;
    for (uint32_t left = map & 0xF; left; left--) {
        uint8_t head;
        if (!take_byte(&cursor, &head) || (head & 0xE0) != 0xA0 || cursor.end - cursor.at < (head & 0x1F))
            return false;
        const int argument = argument_named(cursor.at, head & 0x1F);
        cursor.at += head & 0x1F;
        if (argument < 0 || call->given & 1u << argument || !take_number(&cursor, &call->values[argument]))
            return false;
        call->given |= 1u << argument;
    }
    return cursor.at == cursor.end;
}

static uint8_t *put_bytes(uint8_t *at, const void *bytes, size_t count)
{
    memcpy(at, bytes, count);
    return at + count;
}

/* The shortest form, as every encoder makes it. */
static uint8_t *put_number(uint8_t *at, uint64_t value)
{
    if (value < 0x80) {
        *at++ = (uint8_t)value;
        return at;
    }
    const uint32_t power = value < 1ull << 8 ? 0 : value < 1ull << 16 ? 1 : value < 1ull << 32 ? 2 : 3;
    *at++ = (uint8_t)(0xCC + power);
    for (uint32_t left = 1u << power; left; left--)
        *at++ = (uint8_t)(value >> 8 * (left - 1));
    return at;
}

size_t fast_encode_access_reply(uint8_t packet[FAST_REPLY_MAX_BYTES], uint64_t value)
{
    uint8_t *at = put_number(put_bytes(packet, "\x92\x00\x82\xA5value", 9), value);
    return (size_t)(put_bytes(at, "\xA4left\x00", 6) - packet);
}

size_t fast_encode_done(uint8_t packet[FAST_REPLY_MAX_BYTES])
{
    return (size_t)(put_bytes(packet, "\x92\x00\x80", 3) - packet);
}

/* -- the access -------------------------------------------------------------------------------------------------------- */

/* HV_X64_IO_PORT_INTERCEPT_MESSAGE. Source: as bus/intercept_messages.py. */
struct segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector, attributes;
};

struct port_message {
    uint32_t vp;
    uint8_t instruction_bytes, access;
    uint16_t execution_state;
    struct segment cs;
    uint64_t rip, rflags;
    uint16_t port;
    uint8_t info, instruction_count;
    uint32_t reserved;
    uint64_t rax;
    uint8_t instruction[16];
    struct segment ds, es;
    uint64_t rcx, rsi, rdi;
};
_Static_assert(sizeof(struct port_message) == 128, "wire size");

static bool has(const struct fast_call *call, uint32_t needed, uint32_t allowed)
{
    return (call->given & needed) == needed && !(call->given & ~allowed);
}

static uint64_t all_ones(uint32_t size)
{
    return (1ull << 8 * size) - 1;
}

/* IN or OUT with DX and A, as a compiler makes it. Its length. */
static uint8_t instruction_of(const struct fast_access *access, uint8_t instruction[16])
{
    uint8_t length = 0;
    memset(instruction, 0, 16);
    if (access->size == 2)
        instruction[length++] = 0x66;
    instruction[length++] = (uint8_t)((access->write ? 0xEE : 0xEC) | (access->size > 1));
    return length;
}

static bool is_intercepted(const struct fast_vp *vp, const struct fast_access *access)
{
    const uint32_t mask = access->write ? FAST_WRITE : FAST_READ, last = access->port + access->size - 1u;
    for (uint32_t i = 0; i < vp->range_count; i++) {
        const struct fast_range *range = &vp->ranges[i];
        if (range->first <= last && access->port <= range->last && range->access & mask)
            return true;
    }
    return false;
}

/* False: the slot is taken. Its pending flag is set then, which does no harm: Python tries again at once. */
static bool tell(const struct fast_vp *vp, const struct fast_access *access, const uint64_t registers[FAST_REGISTERS])
{
    static const struct segment data = {0, 0xFFFFFFFFu, 0x18, 0xC093};
    struct port_message port = {
        .vp = vp->vp, .access = access->write, .execution_state = LONG_MODE, .cs = {0, 0xFFFFFFFFu, 0x10, 0xA09B},
        .rip = registers[FAST_RIP], .rflags = registers[FAST_RFLAGS], .port = access->port, .info = access->size,
        .rax = registers[FAST_RAX], .ds = data, .es = data, .rcx = registers[FAST_RCX], .rsi = registers[FAST_RSI],
        .rdi = registers[FAST_RDI]};
    port.instruction_bytes = port.instruction_count = instruction_of(access, port.instruction);
    struct synic_message message = {
        .type = MESSAGE_PORT_INTERCEPT, .payload_bytes = sizeof port, .sender = vp->child};
    memcpy(message.payload, &port, sizeof port);
    return synic_post_message(vp->sim_page, INTERCEPT_SINT, &message);
}

bool fast_may_tell(const struct fast_vp *vp)
{
    return synic_slot_is_free(vp->sim_page, INTERCEPT_SINT);
}

/* Behind the instruction. */
static void step(struct fast_vp *vp, const struct fast_access *access)
{
    uint8_t unused[16];
    vp->registers[FAST_RIP] += instruction_of(access, unused);
}

enum fast_result fast_access_port(struct fast_vp *vp, const struct fast_call *call, uint64_t *value)
{
    const uint32_t needed = 1u << FAST_VP | 1u << FAST_PORT | 1u << FAST_SIZE;
    if (vp->suspended || !has(call, needed, needed | 1u << FAST_IS_WRITE | 1u << FAST_VALUE))
        return FAST_LEFT;
    const uint64_t port = call->values[FAST_PORT], size = call->values[FAST_SIZE];
    const uint64_t write = call->given & 1u << FAST_IS_WRITE ? call->values[FAST_IS_WRITE] : 0;
    const uint64_t written = call->given & 1u << FAST_VALUE ? call->values[FAST_VALUE] : 0;
    if (call->values[FAST_VP] != vp->vp || (size != 1 && size != 2 && size != 4) || port > PORTS - size || write > 1
        || written > all_ones((uint32_t)size))
        return FAST_LEFT;
    const struct fast_access access = {(uint16_t)port, (uint8_t)size, write == 1};
    uint64_t registers[FAST_REGISTERS];
    memcpy(registers, vp->registers, sizeof registers);
    registers[FAST_RDX] = port;
    if (access.write)
        registers[FAST_RAX] = written;
    const bool told = is_intercepted(vp, &access);
    if (told && !tell(vp, &access, registers))
        return FAST_LEFT;
    memcpy(vp->registers, registers, sizeof registers);
    if (told) {
        vp->access = access;
        vp->suspended = true;
        return FAST_TOLD;
    }
    step(vp, &access); /* nobody is there: ones are read, and a write goes nowhere */
    *value = access.write ? 0 : all_ones(access.size);
    return FAST_ANSWERED;
}

enum fast_result fast_register_result(struct fast_vp *vp, const struct fast_call *call, uint64_t *value)
{
    const uint32_t needed = 1u << FAST_PARTITION | 1u << FAST_VP | 1u << FAST_TYPE | 1u << FAST_VALUE;
    const struct fast_access *access = &vp->access;
    if (!vp->suspended || !has(call, needed, needed) || call->values[FAST_PARTITION] != vp->child
        || call->values[FAST_VP] != vp->vp || call->values[FAST_TYPE] != TYPE_IO_PORT
        || call->values[FAST_VALUE] > all_ones(access->size))
        return FAST_LEFT;
    if (!access->write)
        vp->registers[FAST_RAX] = call->values[FAST_VALUE];
    step(vp, access);
    vp->suspended = false;
    *value = access->write ? 0 : vp->registers[FAST_RAX] & all_ones(access->size);
    return FAST_ANSWERED;
}
