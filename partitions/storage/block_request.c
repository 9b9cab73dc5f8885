#include "block_request.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "big_endian.h"

bool block_request_parse(const struct block_geometry *disk, const struct storvsp_packet *packet,
                         struct block_transfer *transfer)
{
    const uint8_t *cdb = packet->cdb_or_sense;
    uint64_t lba, blocks;
    if (packet->operation != STORVSP_EXECUTE_SRB || (packet->path | packet->target | packet->lun) != 0)
        return false;
    switch (cdb[0]) {
    case SCSI_READ_10:
    case SCSI_WRITE_10:
        if (packet->cdb_length < 10 || (cdb[9] & SCSI_NACA))
            return false;
        lba = big_endian_number(cdb + 2, 4);
        blocks = big_endian_number(cdb + 7, 2);
        break;
    case SCSI_READ_16:
    case SCSI_WRITE_16:
        if (packet->cdb_length < 16 || (cdb[15] & SCSI_NACA))
            return false;
        lba = big_endian_number(cdb + 2, 8);
        blocks = big_endian_number(cdb + 10, 4);
        break;
    default:
        return false;
    }
    transfer->write = cdb[0] == SCSI_WRITE_10 || cdb[0] == SCSI_WRITE_16;
    if (packet->cdb_length > 16 || cdb[1] != 0) /* caching and protection bits are not ordinary */
        return false;
    if (packet->direction != (transfer->write ? SRB_DIRECTION_WRITE : SRB_DIRECTION_READ))
        return false;
    if (transfer->write && !disk->writable)
        return false;
    if (blocks == 0 || lba > disk->blocks || blocks > disk->blocks - lba)
        return false;
    if (blocks > disk->max_transfer_bytes / disk->block_bytes)
        return false;
    transfer->bytes = (uint32_t)blocks * disk->block_bytes;
    transfer->offset_bytes = lba * disk->block_bytes;
    return transfer->bytes <= packet->transfer_bytes;
}

void block_request_make_answer(struct storvsp_packet *packet, const struct block_transfer *transfer)
{
    packet->operation = STORVSP_COMPLETE_IO;
    packet->flags = packet->status = 0;
    packet->srb_length = SRB_BYTES;
    packet->srb_status = SRB_STATUS_SUCCESS;
    packet->scsi_status = packet->sense_length = packet->reserved_1 = 0;
    packet->transfer_bytes = transfer->bytes;
    memset(packet->cdb_or_sense, 0, sizeof packet->cdb_or_sense);
    packet->reserved_2 = 0;
}

static void build_cdb(struct storvsp_packet *packet, bool write, uint64_t lba, uint32_t blocks)
{
    uint8_t *cdb = packet->cdb_or_sense;
    if (lba <= UINT32_MAX && blocks <= UINT16_MAX) {
        cdb[0] = write ? SCSI_WRITE_10 : SCSI_READ_10;
        put_big_endian(cdb + 2, 4, lba);
        put_big_endian(cdb + 7, 2, blocks);
        packet->cdb_length = 10;
    } else {
        cdb[0] = write ? SCSI_WRITE_16 : SCSI_READ_16;
        put_big_endian(cdb + 2, 8, lba);
        put_big_endian(cdb + 10, 4, blocks);
        packet->cdb_length = 16;
    }
}

void block_request_build_command(struct storvsp_packet *packet, uint8_t cdb_bytes, uint8_t direction, uint32_t bytes)
{
    *packet = (struct storvsp_packet){
        .operation = STORVSP_EXECUTE_SRB,
        .flags = STORVSP_COMPLETION_REQUESTED,
        .srb_length = SRB_BYTES,
        .cdb_length = cdb_bytes,
        .sense_length = SRB_SENSE_AREA_BYTES,
        .direction = direction,
        .transfer_bytes = bytes,
        .srb_flags = direction == SRB_DIRECTION_WRITE  ? SRB_FLAGS_DATA_OUT
                     : direction == SRB_DIRECTION_READ ? SRB_FLAGS_DATA_IN
                                                       : SRB_FLAGS_NO_TRANSFER,
    };
}

void block_request_build(struct storvsp_packet *packet, bool write, uint64_t lba, uint32_t blocks, uint32_t bytes)
{
    block_request_build_command(packet, 0, write ? SRB_DIRECTION_WRITE : SRB_DIRECTION_READ, bytes);
    build_cdb(packet, write, lba, blocks);
}

bool block_request_went_well(const struct storvsp_packet *answer, uint32_t bytes)
{
    return answer->operation == STORVSP_COMPLETE_IO && answer->status == 0
           && (answer->srb_status & SRB_STATUS_MASK) == SRB_STATUS_SUCCESS && answer->scsi_status == 0
           && answer->transfer_bytes == bytes;
}

/* One range of neighbouring pages is the usual case, and there the plain calls cost a tenth less. */
static ssize_t move_once(int fd, const struct block_transfer *transfer, const struct iovec *to, size_t count)
{
    const off_t at = (off_t)transfer->offset_bytes;
    if (transfer->write)
        return count == 1 ? pwrite(fd, to->iov_base, to->iov_len, at) : pwritev(fd, to, (int)count, at);
    return count == 1 ? pread(fd, to->iov_base, to->iov_len, at) : preadv(fd, to, (int)count, at);
}

bool block_request_move(int fd, const struct block_transfer *transfer, const struct iovec *vectors, size_t count)
{
    ssize_t moved;
    do
        moved = move_once(fd, transfer, vectors, count);
    while (moved < 0 && errno == EINTR);
    return moved == (ssize_t)transfer->bytes;
}
