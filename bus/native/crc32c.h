/* CRC-32C (Castagnoli), as iSCSI and ext4 use it: reflected polynomial 0x82F63B78, inverted before and after. */
#ifndef PARTVISOR_CRC32C_H
#define PARTVISOR_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* value: the CRC of what came before, 0 at the start. Source: RFC 3720, appendix B.4. */
uint32_t crc32c(uint32_t value, const void *data, size_t bytes);

/* The table-driven form, which every processor can run; for tests and for machines without the instruction. */
uint32_t crc32c_portable(uint32_t value, const void *data, size_t bytes);

/* Fill the tables; once a process, before the first call. */
void crc32c_prepare(void);

#endif
