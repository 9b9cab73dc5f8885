#include "crc32c.h"

#include <stdbool.h>
#include <string.h>

#define POLYNOMIAL 0x82F63B78u
#define LANE_BYTES 1024u /* the instruction takes 3 cycles and one can start each cycle: three lanes keep it busy */

static uint32_t byte_table[8][256];   /* table k: a byte followed by k zero bytes */
static uint32_t lane_table[4][256];   /* byte k of a CRC, followed by LANE_BYTES zero bytes */
static bool has_instruction;

static uint32_t update_portable(uint32_t crc, const uint8_t *at, size_t bytes)
{
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = 0;
        for (unsigned k = 0; k < 8; k++)
            crc ^= byte_table[7 - k][word >> 8 * k & 0xFF];
    }
    for (; bytes; bytes--)
        crc = crc >> 8 ^ byte_table[0][(crc ^ *at++) & 0xFF];
    return crc;
}

void crc32c_prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        byte_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (unsigned k = 1; k < 8; k++)
            byte_table[k][i] = byte_table[k - 1][i] >> 8 ^ byte_table[0][byte_table[k - 1][i] & 0xFF];
    static const uint8_t zeros[LANE_BYTES];
    for (uint32_t i = 0; i < 256; i++)
        for (unsigned k = 0; k < 4; k++)
            lane_table[k][i] = update_portable(i << 8 * k, zeros, LANE_BYTES);
#if defined(__x86_64__)
    __builtin_cpu_init();
    has_instruction = __builtin_cpu_supports("sse4.2");
#endif
}

uint32_t crc32c_portable(uint32_t value, const void *data, size_t bytes)
{
    return ~update_portable(~value, data, bytes);
}

#if defined(__x86_64__)
static uint32_t behind_a_lane(uint32_t crc)
{
    return lane_table[0][crc & 0xFF] ^ lane_table[1][crc >> 8 & 0xFF] ^ lane_table[2][crc >> 16 & 0xFF]
           ^ lane_table[3][crc >> 24];
}

/* A CRC is linear: that of three lanes in a row is the first one's moved over two lanes, the second's over one, the third. */
__attribute__((target("sse4.2"))) static uint32_t update_instruction(uint32_t crc, const uint8_t *at, size_t bytes)
{
    uint64_t word, first, second, third;
    for (; bytes >= 3 * LANE_BYTES; bytes -= 3 * LANE_BYTES, at += 3 * LANE_BYTES) {
        first = crc;
        second = third = 0;
        for (size_t i = 0; i < LANE_BYTES; i += 8) {
            memcpy(&word, at + i, 8);
            first = __builtin_ia32_crc32di(first, word);
            memcpy(&word, at + LANE_BYTES + i, 8);
            second = __builtin_ia32_crc32di(second, word);
            memcpy(&word, at + 2 * LANE_BYTES + i, 8);
            third = __builtin_ia32_crc32di(third, word);
        }
        crc = behind_a_lane(behind_a_lane((uint32_t)first) ^ (uint32_t)second) ^ (uint32_t)third;
    }
    first = crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        memcpy(&word, at, 8);
        first = __builtin_ia32_crc32di(first, word);
    }
    crc = (uint32_t)first;
    for (; bytes; bytes--)
        crc = __builtin_ia32_crc32qi(crc, *at++);
    return crc;
}
#endif

uint32_t crc32c(uint32_t value, const void *data, size_t bytes)
{
#if defined(__x86_64__)
    if (has_instruction)
        return ~update_instruction(~value, data, bytes);
#endif
    return crc32c_portable(value, data, bytes);
}
