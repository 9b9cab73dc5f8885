/* Packets of a hostile guest and a hostile parent against the fast path of port accesses: whatever comes, it is left with
 * nothing changed, or served as the state machine's rules say, and nothing outside its buffers is touched.
 *
 *   fast_intercept_property [SEEDS]       run under the sanitizers by scripts/sanitize */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fast_intercept.h"
#include "synic.h"

#define PACKETS 4000
#define ACCESS_PORT 0x8F05u
#define REGISTER_RESULT 0x91u
#define CHILD 300u

static uint64_t state;

static uint64_t next_random(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static void check(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "fast_intercept_property: %s\n", what);
    exit(1);
}

static size_t put_text(uint8_t *at, const char *text)
{
    const size_t bytes = strlen(text);
    *at = (uint8_t)(0xA0 | bytes);
    memcpy(at + 1, text, bytes);
    return bytes + 1;
}

static size_t put_value(uint8_t *at, uint64_t value)
{
    if (value < 0x80) {
        *at = (uint8_t)value;
        return 1;
    }
    *at = 0xCF;
    for (int i = 0; i < 8; i++)
        at[1 + i] = (uint8_t)(value >> 8 * (7 - i));
    return 9;
}

/* One of the two calls, mostly right, sometimes with bytes turned round, cut short or made longer. */
static size_t make_packet(uint8_t packet[FAST_PACKET_MAX_BYTES])
{
    static const uint64_t odd[] = {0, 1, 2, 3, 4, 0x3F8, 0x3FF, 0xFFFF, 0x10000, CHILD, 1ull << 32, UINT64_MAX};
    const bool access = next_random() % 2;
    size_t at = 0;
    packet[at++] = 0x92;
    at += put_value(packet + at, access ? ACCESS_PORT : REGISTER_RESULT);
    const char *const names[2][5] = {{"partition", "vp", "type", "value", NULL}, {"vp", "port", "size", "write", "value"}};
    const uint64_t usual[2][5] = {{CHILD, 0, 0, next_random() % 256, 0}, {0, 0x3F8, 1, next_random() % 2, 0}};
    const uint32_t count = access ? 3 + (uint32_t)(next_random() % 3) : 4;
    packet[at++] = (uint8_t)(0x80 | count);
    for (uint32_t i = 0; i < count; i++) {
        at += put_text(packet + at, names[access][i]);
        at += put_value(packet + at, next_random() % 8 ? usual[access][i] : odd[next_random() % 12]);
    }
    if (next_random() % 4 == 0)
        packet[next_random() % at] = (uint8_t)next_random();
    if (next_random() % 8 == 0)
        at = 1 + next_random() % at;
    if (next_random() % 16 == 0)
        packet[at++] = (uint8_t)next_random();
    return at;
}

static void run(uint64_t seed)
{
    state = seed * 0x9E3779B97F4A7C15u + 1;
    _Alignas(8) static uint8_t page[SYNIC_PAGE_BYTES];
    memset(page, 0, sizeof page);
    struct fast_vp vp = {.child = CHILD, .sim_page = page, .range_count = 2,
                         .ranges = {{0x3F8, 0x3FF, FAST_READ | FAST_WRITE}, {0xFFFF, 0xFFFF, FAST_READ}}};
    for (int i = 0; i < PACKETS; i++) {
        uint8_t packet[FAST_PACKET_MAX_BYTES];
        const size_t bytes = make_packet(packet);
        uint8_t *const exact = malloc(bytes); /* so that a byte too far is noticed */
        memcpy(exact, packet, bytes);
        struct fast_call call;
        const bool decoded = fast_decode(&call, exact, bytes);
        free(exact);
        if (!decoded)
            continue;
        const struct fast_vp before = vp;
        uint64_t value = UINT64_MAX;
        const bool is_access = call.code == ACCESS_PORT;
        const enum fast_result result = is_access ? fast_access_port(&vp, &call, &value) : fast_register_result(&vp, &call, &value);
        struct synic_message message;
        bool owed;
        const bool told = synic_take_message(page, 0, &message, &owed);
        check(told == (result == FAST_TOLD), "a message goes out if the parent is to be told, and never else");
        if (result == FAST_LEFT) {
            check(memcmp(&before, &vp, sizeof vp) == 0, "what is left has changed nothing");
            continue;
        }
        const uint64_t stepped = vp.registers[FAST_RIP] - before.registers[FAST_RIP];
        check(before.suspended == !is_access, "a VP that waits accesses nothing, and no other is answered");
        if (result == FAST_TOLD) {
            check(vp.suspended && stepped == 0, "a VP that waits stands where it was");
            check(message.sender == CHILD && message.payload_bytes == 128, "the message is of this child");
        } else {
            const struct fast_access *access = &before.access;
            const uint32_t size = is_access ? (uint32_t)call.values[FAST_SIZE] : access->size;
            check(!vp.suspended && (stepped == 1 || stepped == 2), "an answered VP is behind its instruction");
            check(value <= (1ull << 8 * size) - 1, "a value is no wider than what was asked for");
            check(is_access || access->write || vp.registers[FAST_RAX] == call.values[FAST_VALUE], "what the parent said is in A");
            check(is_access || value == (access->write ? 0 : call.values[FAST_VALUE]), "what the parent said is what is read");
            uint8_t reply[FAST_REPLY_MAX_BYTES];
            check(fast_encode_access_reply(reply, value) <= sizeof reply, "a reply fits");
        }
        for (int other = 0; other < (int)FAST_REGISTERS; other++)
            if (other != FAST_RAX && other != FAST_RDX && other != FAST_RIP)
                check(before.registers[other] == vp.registers[other], "no other register changes");
    }
}

int main(int argc, char **argv)
{
    const long seeds = argc > 1 ? atol(argv[1]) : 100;
    for (long seed = 1; seed <= seeds; seed++)
        run((uint64_t)seed);
    printf("fast_intercept_property: %ld seeds\n", seeds);
    return 0;
}
