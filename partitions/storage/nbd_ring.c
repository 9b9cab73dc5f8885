/* The ring's side of nbd_engine.h: what a request is for the disk, and what comes back. */
#include <string.h>

#include "big_endian.h"
#include "block_request.h"
#include "nbd_engine.h"

#define SCSI_SYNCHRONIZE_CACHE_10 0x35u
#define SCSI_UNMAP 0x42u
#define UNMAP_PARAMETER_BYTES 24u /* head and one descriptor */

uint8_t *nbd_page(const struct nbd_engine *engine, uint32_t page)
{
    return engine->data + (size_t)page * RING_PAGE_BYTES;
}

void nbd_append(struct nbd_list *list, struct nbd_work *work)
{
    work->next = NULL;
    if (list->last)
        list->last->next = work;
    else
        list->first = work;
    list->last = work;
}

/* -- pages and requests */

bool nbd_take_pages(struct nbd_engine *engine, struct nbd_connection *connection, uint32_t count,
                    struct nbd_pages *pages)
{
    *pages = (struct nbd_pages){.first = NBD_NO_PAGE, .last = NBD_NO_PAGE, .count = count};
    if (count == 0)
        return true;
    if (count > engine->free_pages || count > engine->pages_each - connection->pages)
        return false;
    pages->first = pages->last = engine->free_page;
    for (uint32_t i = 1; i < count; i++)
        pages->last = engine->next_page[pages->last];
    engine->free_page = engine->next_page[pages->last];
    engine->next_page[pages->last] = NBD_NO_PAGE;
    engine->free_pages -= count;
    connection->pages += count;
    return true;
}

static void give_pages_back(struct nbd_engine *engine, struct nbd_work *work)
{
    struct nbd_pages *pages = &work->pages;
    if (pages->count == 0)
        return;
    engine->next_page[pages->last] = engine->free_page; /* used last, so taken first: they are in the cache */
    engine->free_page = pages->first;
    engine->free_pages += pages->count;
    work->connection->pages -= pages->count;
    pages->count = 0;
}

void nbd_free_work(struct nbd_engine *engine, struct nbd_work *work)
{
    give_pages_back(engine, work);
    work->connection->requests--;
    work->next = engine->free_work;
    engine->free_work = work;
}

void nbd_begin(struct nbd_engine *engine, struct nbd_work *work)
{
    if (work->waiting)
        return;
    work->waiting = true;
    nbd_append(&engine->waiting, work);
}

void nbd_finish(struct nbd_engine *engine, struct nbd_work *work)
{
    struct nbd_connection *connection = work->connection;
    const bool reads = work->request.command == NBD_COMMAND_READ && work->error == 0;
    if (connection->state == NBD_CONNECTION_OVER) {
        nbd_free_work(engine, work);
        nbd_retire(engine, connection);
        return;
    }
    if (work->error)
        engine->statistics.refused++;
    else if (reads)
        engine->statistics.bytes_read += work->request.length;
    else if (work->request.command == NBD_COMMAND_WRITE)
        engine->statistics.bytes_written += work->request.length;
    endpoint_stamp(engine->queue.endpoint, TRACE_RETURN, work->request.cookie);
    nbd_build_reply(work->reply, work->request.cookie, work->error);
    work->reply_bytes = NBD_REPLY_BYTES + (reads ? work->request.length : 0);
    if (!reads)
        give_pages_back(engine, work);
    connection->owed_bytes += work->reply_bytes;
    nbd_append(&connection->replies, work);
}

/* -- the ring's side */

/* A packet with `bytes` of data from `page` on, `page` again and again where it is the page of zeros. */
static enum ring_status stage(struct nbd_engine *engine, struct nbd_work *work, const struct storvsp_packet *packet,
                              uint32_t page, uint32_t bytes, uint32_t *next)
{
    const uint32_t fragment = engine->free_fragments[engine->free_fragment_count - 1];
    const uint32_t pages = (bytes + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    uint64_t *pfns = block_queue_pfns(&engine->queue);
    for (uint32_t i = 0; i < pages; i++) {
        pfns[i] = engine->queue.first_pfn + page;
        if (page != 0)
            page = engine->next_page[page];
    }
    const enum ring_status status = block_queue_stage_packet(&engine->queue, fragment, packet, bytes);
    if (status == RING_OK) {
        engine->free_fragment_count--;
        engine->fragment_work[fragment] = work;
        work->in_flight++;
        *next = page;
    }
    return status;
}

static enum ring_status stage_flush(struct nbd_engine *engine, struct nbd_work *work)
{
    struct storvsp_packet packet;
    uint32_t unused;
    block_request_build_command(&packet, 10, SRB_DIRECTION_NONE, 0);
    packet.cdb_or_sense[0] = SCSI_SYNCHRONIZE_CACHE_10;
    return stage(engine, work, &packet, 0, 0, &unused);
}

static enum ring_status stage_unmap(struct nbd_engine *engine, struct nbd_work *work, uint64_t lba, uint32_t blocks)
{
    struct storvsp_packet packet;
    uint32_t unused;
    uint8_t *parameters = nbd_page(engine, work->pages.first);
    memset(parameters, 0, UNMAP_PARAMETER_BYTES);
    put_big_endian(parameters, 2, UNMAP_PARAMETER_BYTES - 2);
    put_big_endian(parameters + 2, 2, UNMAP_PARAMETER_BYTES - 8);
    put_big_endian(parameters + 8, 8, lba);
    put_big_endian(parameters + 16, 4, blocks);
    block_request_build_command(&packet, 10, SRB_DIRECTION_WRITE, UNMAP_PARAMETER_BYTES);
    packet.cdb_or_sense[0] = SCSI_UNMAP;
    put_big_endian(packet.cdb_or_sense + 7, 2, UNMAP_PARAMETER_BYTES);
    return stage(engine, work, &packet, work->pages.first, UNMAP_PARAMETER_BYTES, &unused);
}

static bool is_unmap(const struct nbd_engine *engine, const struct nbd_request *request)
{
    return request->command == NBD_COMMAND_TRIM
           || (request->command == NBD_COMMAND_WRITE_ZEROES && engine->disk.can_discard
               && !(request->flags & NBD_COMMAND_FLAG_NO_HOLE));
}

/* Stage as much of a request as it may have in the ring. RING_OK: nothing more for now; RING_FULL: it waits for room. */
static enum ring_status issue(struct nbd_engine *engine, struct nbd_work *work)
{
    const struct nbd_request *request = &work->request;
    const uint32_t block_bytes = engine->disk.block_bytes;
    const uint32_t length = request->command == NBD_COMMAND_FLUSH ? 0 : request->length;
    const bool unmaps = is_unmap(engine, request);
    const uint32_t largest = unmaps ? engine->unmap_bytes_max : engine->max_fragment_bytes;
    const uint32_t at_once = unmaps ? 1 : NBD_FRAGMENTS_EACH; /* one page of parameters, one UNMAP */
    enum ring_status status = RING_OK;
    while (status == RING_OK && work->error == 0 && work->issued_bytes < length && work->in_flight < at_once) {
        if (engine->free_fragment_count == 0)
            return RING_FULL;
        const uint32_t left = length - work->issued_bytes, bytes = left < largest ? left : largest;
        const uint64_t lba = (request->offset + work->issued_bytes) / block_bytes;
        if (unmaps) {
            status = stage_unmap(engine, work, lba, bytes / block_bytes);
        } else {
            struct storvsp_packet packet;
            block_request_build(&packet, request->command != NBD_COMMAND_READ, lba, bytes / block_bytes, bytes);
            status = stage(engine, work, &packet, work->issue_page, bytes, &work->issue_page);
        }
        if (status == RING_OK)
            work->issued_bytes += bytes;
    }
    return status;
}

/* All of its fragments are back. RING_FULL: its flush waits for room. */
static enum ring_status complete(struct nbd_engine *engine, struct nbd_work *work)
{
    const bool flushes = work->request.command == NBD_COMMAND_FLUSH
                         || (work->request.command != NBD_COMMAND_READ && work->request.flags & NBD_COMMAND_FLAG_FUA);
    if (!flushes || work->flush_issued || work->error || work->connection->state == NBD_CONNECTION_OVER) {
        nbd_finish(engine, work);
        return RING_OK;
    }
    if (engine->free_fragment_count == 0)
        return RING_FULL;
    const enum ring_status status = stage_flush(engine, work);
    work->flush_issued = status == RING_OK;
    return status;
}

static bool has_more(const struct nbd_work *work)
{
    return work->error == 0 && work->request.command != NBD_COMMAND_FLUSH && work->issued_bytes < work->request.length
           && work->connection->state != NBD_CONNECTION_OVER;
}

bool nbd_issue_all(struct nbd_engine *engine)
{
    struct nbd_work *work;
    if (engine->stalled)
        ring_want_no_space(&engine->queue.endpoint->writer);
    engine->stalled = false;
    while ((work = engine->waiting.first) != NULL) {
        enum ring_status status = has_more(work) ? issue(engine, work) : RING_OK;
        if (status == RING_OK && work->in_flight == 0 && !has_more(work)) {
            struct nbd_work *const next = work->next; /* complete() may put it on another list */
            status = complete(engine, work);
            if (status == RING_OK) {
                work->waiting = false;
                engine->waiting.first = next;
                if (!next)
                    engine->waiting.last = NULL;
                continue;
            }
        }
        if (status == RING_FULL) {
            engine->stalled = engine->free_fragment_count > 0; /* else an answer makes room, which is news anyway */
            return true;
        }
        if (status != RING_OK)
            return false;
        engine->waiting.first = work->next;
        if (!engine->waiting.first)
            engine->waiting.last = NULL;
        work->waiting = false;
    }
    return true;
}

static void fragment_ended(struct nbd_engine *engine, uint32_t fragment, uint32_t error)
{
    struct nbd_work *work = engine->fragment_work[fragment];
    engine->fragment_work[fragment] = NULL;
    engine->free_fragments[engine->free_fragment_count++] = (uint16_t)fragment;
    work->in_flight--;
    if (error && work->error == 0)
        work->error = error;
    const bool may_flush = (work->request.flags & NBD_COMMAND_FLAG_FUA) && !work->flush_issued;
    if (work->in_flight == 0 && !work->waiting && !may_flush && !has_more(work))
        nbd_finish(engine, work); /* the usual end: at once */
    else
        nbd_begin(engine, work);
}

void nbd_engine_settle(struct nbd_engine *engine, uint32_t fragment, uint32_t error)
{
    if (fragment < NBD_FRAGMENTS_MAX && engine->fragment_work[fragment]
        && engine->queue.slot[fragment].transaction_id == 0)
        fragment_ended(engine, fragment, error);
}

/* Anything that is no READ or WRITE moves no data of its own: what counts is that it ended well. */
static bool ended_well(const struct nbd_work *work, const struct storvsp_packet *packet)
{
    const uint16_t command = work->request.command;
    return command != NBD_COMMAND_READ && command != NBD_COMMAND_WRITE
           && block_request_went_well(packet, packet->transfer_bytes);
}

bool nbd_take_completions(struct nbd_engine *engine, bool *moved)
{
    struct endpoint *endpoint = engine->queue.endpoint;
    struct ring_packet found;
    struct storvsp_packet packet;
    enum ring_status status;
    uint32_t fragment;
    while ((status = ring_peek(&endpoint->reader, &found)) == RING_OK) {
        const enum block_completion completion = block_queue_take(&engine->queue, &found, &fragment, &packet);
        ring_hold(&endpoint->reader, &found);
        *moved = true;
        if (completion == BLOCK_FOREIGN) {
            engine->statistics.foreign++;
        } else if (completion == BLOCK_DONE || (ended_well(engine->fragment_work[fragment], &packet))
                   || (engine->fragment_work[fragment]->flush_issued
                       && block_request_went_well(&packet, packet.transfer_bytes))) {
            fragment_ended(engine, fragment, 0);
        } else {
            engine->failed[engine->failed_count++] = (struct nbd_failure){.fragment = fragment, .packet = packet};
        }
    }
    if (ring_release(&endpoint->reader))
        endpoint_signal(endpoint);
    return status == RING_EMPTY;
}
