/* The storvsp packet that carries one READ or WRITE, as bytes; protocol.py says the rest. No Python.
 *
 *   @0   u32 operation   u32 flags   u32 status (NTSTATUS)
 *   @12  the SCSI request block, 52 bytes
 *
 * Sources: openvmm vm/devices/storage/storvsp_protocol; Linux drivers/scsi/storvsc_drv.c; SBC-3. */
#ifndef PARTVISOR_STORVSP_H
#define PARTVISOR_STORVSP_H

#include <stddef.h>
#include <stdint.h>

#define STORVSP_PACKET_BYTES 64u
#define STORVSP_COMPLETE_IO 1u
#define STORVSP_EXECUTE_SRB 3u
#define STORVSP_COMPLETION_REQUESTED 1u

#define SRB_BYTES 52u
#define SRB_STATUS_SUCCESS 1u
#define SRB_STATUS_MASK 0x3Fu /* above: flags */
#define SRB_SENSE_AREA_BYTES 20u
#define SRB_DIRECTION_WRITE 0u
#define SRB_DIRECTION_READ 1u
#define SRB_DIRECTION_NONE 2u
#define SRB_FLAGS_NO_TRANSFER 0x08u /* DISABLE_SYNCH_TRANSFER */
#define SRB_FLAGS_DATA_IN 0x40u
#define SRB_FLAGS_DATA_OUT 0x80u

#define SCSI_READ_10 0x28u
#define SCSI_WRITE_10 0x2Au
#define SCSI_READ_16 0x88u
#define SCSI_WRITE_16 0x8Au
#define SCSI_NACA 0x04u /* in the control byte, a CDB's last: refused, so it is not for the fast path */

/* At 12 in the packet, so nothing inside is aligned by itself: packed. */
struct storvsp_packet {
    uint32_t operation, flags, status;
    uint16_t srb_length;
    uint8_t srb_status, scsi_status;
    uint8_t port, path, target, lun;
    uint8_t cdb_length, sense_length, direction, reserved_1;
    uint32_t transfer_bytes;
    uint8_t cdb_or_sense[SRB_SENSE_AREA_BYTES];
    uint16_t reserved_2;
    uint8_t queue_tag, queue_action;
    uint32_t srb_flags, timeout_s, queue_sort_key;
} __attribute__((packed));

_Static_assert(sizeof(struct storvsp_packet) == STORVSP_PACKET_BYTES, "wire size");
_Static_assert(offsetof(struct storvsp_packet, srb_length) == 12, "wire offset");
_Static_assert(offsetof(struct storvsp_packet, direction) == 22, "wire offset");
_Static_assert(offsetof(struct storvsp_packet, transfer_bytes) == 24, "wire offset");
_Static_assert(offsetof(struct storvsp_packet, cdb_or_sense) == 28, "wire offset");
_Static_assert(offsetof(struct storvsp_packet, srb_flags) == 52, "wire offset");

/* Extra header of a GPA-direct packet with one range; the PFNs follow. */
struct gpa_direct_head {
    uint32_t reserved; /* may hold anything */
    uint32_t range_count;
    uint32_t byte_count, byte_offset;
};
_Static_assert(sizeof(struct gpa_direct_head) == 16, "wire size");

#define PFN_BYTES 8u
#define STORVSP_MAX_TRANSFER_BYTES (1024u * 1024u) /* the largest that either fast path moves in one request */
#define STORVSP_MAX_PFNS (STORVSP_MAX_TRANSFER_BYTES / 4096u + 1u)
#define STORVSP_MAX_EXTRA_BYTES (sizeof(struct gpa_direct_head) + STORVSP_MAX_PFNS * PFN_BYTES)

#endif
