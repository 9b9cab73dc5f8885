/* Big-endian numbers of 1 to 8 bytes, at any address: those of CDBs and of NBD. No Python. */
#ifndef PARTVISOR_BIG_ENDIAN_H
#define PARTVISOR_BIG_ENDIAN_H

#include <stdint.h>

static inline uint64_t big_endian_number(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static inline void put_big_endian(uint8_t *at, unsigned bytes, uint64_t value)
{
    for (unsigned i = bytes; i-- > 0; value >>= 8)
        at[i] = (uint8_t)value;
}

#endif
