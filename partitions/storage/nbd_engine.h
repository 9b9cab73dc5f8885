/* An NBD server's transmission phase on a disk's channel, without Python: sockets on one side, the ring on the other.
 *
 *   socket ─ readv ─▶ headers, and a WRITE's data straight into pages ─▶ requests ─▶ the ring, a batch at a time
 *   socket ◀ sendmsg ─ reply headers, and a READ's data out of the pages ◀─ completions
 *
 * The pages are the channel's data area, in which any free ones make up a request: a packet names each. So data is copied
 * into the socket and out of it, by the kernel, and nowhere else. One readv takes all that a client has said; one sendmsg
 * answers all of its requests that have ended.
 *
 * Clients are not trusted, and neither is the disk's server. Each connection may use so many pages and requests and no
 * more: one that sends and never reads stands still alone. One thread runs all of it. */
#ifndef PARTVISOR_NBD_ENGINE_H
#define PARTVISOR_NBD_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "block_queue.h"
#include "endpoint.h"
#include "nbd_wire.h"

#define NBD_CONNECTIONS_MAX 8u
#define NBD_REQUESTS_MAX 128u  /* of one connection, under way or not replied to */
#define NBD_PAYLOAD_BYTES_MAX 1048576u /* of one READ or WRITE; less where a connection's share of the pages is smaller */
#define NBD_HEADERS_READ 64u   /* so many requests are taken out of a socket at once */
#define NBD_FRAGMENTS_MAX 512u /* requests in the ring */
#define NBD_FRAGMENTS_EACH 4u  /* of one NBD request, in the ring at once */
#define NBD_VECTORS_MAX 512u   /* of one readv or sendmsg */
#define NBD_POOL_PAGES_MIN (NBD_CONNECTIONS_MAX + 1u)
#define NBD_NO_PAGE UINT32_MAX

/* Each batch costs some system calls and wake-ups on its way, however many requests are in it. So replies wait for each
 * other while the server is at the rest of a batch, but not longer than that, nor when they are as many bytes as these;
 * while one request follows the other, the next one is waited for before a batch sets out. */
#define NBD_HELD_REPLY_BYTES 65536u
#define NBD_GATHER_NS 15000u       /* for the next request */
#define NBD_GATHER_WHOLE_NS 60000u /* for all of a batch */
#define NBD_GATHER_REQUESTS 16u
#define NBD_GATHER_PROBE 16u /* one time in so many the full limit is tried again */

struct nbd_connection;

/* Pages in a row, linked in nbd_engine.next_page. */
struct nbd_pages {
    uint32_t first, last, count;
};

/* A request of a client, from its header until its reply is in the socket. It is on at most one list: the engine's free
 * or waiting one, or its connection's replies. */
struct nbd_work {
    struct nbd_work *next;
    struct nbd_connection *connection;
    struct nbd_request request;
    struct nbd_pages pages;
    uint32_t issue_page; /* where the next fragment begins */
    uint32_t issued_bytes;
    uint32_t in_flight;    /* fragments */
    uint32_t error;        /* the first of them, as NBD has it; 0: none */
    bool waiting;          /* on the engine's list */
    bool flush_issued;     /* for FUA: behind the last fragment */
    uint8_t reply[NBD_REPLY_BYTES];
    uint32_t reply_bytes; /* with a READ's data */
};

struct nbd_list {
    struct nbd_work *first, *last;
};

enum nbd_ending {
    NBD_ENDED_IN_ORDER, /* it said so */
    NBD_ENDED_LOST,     /* its socket ended without that */
    NBD_ENDED_BROKEN,   /* what it sent is not the protocol */
};

enum nbd_connection_state {
    NBD_CONNECTION_FREE,
    NBD_CONNECTION_OPEN,
    NBD_CONNECTION_LEAVING, /* nothing more is read; what is under way is replied to */
    NBD_CONNECTION_OVER,    /* nothing is sent, either: what is under way only has to come back */
};

struct nbd_connection {
    int fd; /* owned */
    enum nbd_connection_state state;
    enum nbd_ending ending;
    bool readable, writable, watches_writable;
    bool hung_up; /* epoll has told of the stream's end, and tells it once */
    uint32_t requests, pages;     /* under way */
    struct nbd_work *receiving;   /* a WRITE whose data is coming */
    uint32_t received_bytes;      /* of that, or of what is dropped */
    uint32_t fill_page;           /* the page that the next byte belongs to */
    uint32_t dropped_bytes;       /* data of a refused WRITE, still to come */
    struct nbd_list replies;
    uint32_t sent_bytes;          /* of the first reply */
    uint64_t owed_bytes;          /* of all replies */
    uint32_t input_start, input_end;
    bool wrote_last;              /* the last request was a WRITE: do not read data along with its header */
    uint8_t input[NBD_HEADERS_READ * NBD_REQUEST_BYTES];
};

struct nbd_failure {
    uint32_t fragment;
    struct storvsp_packet packet;
};

struct nbd_engine_statistics {
    uint64_t requests, refused, bytes_read, bytes_written;
    uint64_t receives, sends, sleeps, foreign; /* system calls that moved something; packets that are nobody's */
};

struct nbd_engine {
    struct block_queue queue; /* its slots are fragments */
    struct nbd_export disk;
    uint32_t max_fragment_bytes, unmap_bytes_max, largest_packet_bytes;
    uint8_t *data; /* the pool: page 0 stays zero */
    uint32_t pool_pages, free_page, free_pages, pages_each;
    uint32_t *next_page;
    int epoll_fd, wake_fd; /* owned */
    bool stalled;          /* the ring has no room for the first that waits */
    bool is_woken, has_news; /* nbd_engine_wake() was called; a socket may have become readable or writable */
    uint32_t gather_ns, gathers; /* the limit, as tuned; how often */
    uint32_t open_connections, ended_count, failed_count;
    struct nbd_list waiting; /* have something to issue */
    struct nbd_work *free_work;
    struct nbd_work *work;                       /* all of them */
    struct nbd_work *fragment_work[NBD_FRAGMENTS_MAX];
    uint16_t free_fragments[NBD_FRAGMENTS_MAX];
    uint32_t free_fragment_count;
    struct nbd_failure failed[NBD_FRAGMENTS_MAX];
    uint32_t ended[NBD_CONNECTIONS_MAX];
    struct nbd_connection connection[NBD_CONNECTIONS_MAX];
    struct iovec vectors[NBD_VECTORS_MAX];
    struct nbd_engine_statistics statistics;
};

enum nbd_result {
    NBD_FOR_PYTHON, /* connections ended, requests failed, or somebody called nbd_engine_wake() */
    NBD_TIMEOUT,
    NBD_INTERRUPTED,
    NBD_CLOSED,
    NBD_CORRUPT,
};

/* 0 or an errno. `data`: pool_pages pages, the first of them guest page first_pfn. What is not set here the caller sets
 * before: disk without its max_payload_bytes, max_fragment_bytes, unmap_bytes_max. */
int nbd_engine_open(struct nbd_engine *engine, uint8_t *data, uint32_t pool_pages, uint64_t first_pfn);
void nbd_engine_destroy(struct nbd_engine *engine);

/* Once: wake up for this channel. 0 or an errno. */
int nbd_engine_watch_channel(struct nbd_engine *engine, const struct endpoint *endpoint);

/* Take a connection over whose negotiation is done. Its number, or -1: there is no room. `fd` is the engine's then. */
int nbd_engine_attach(struct nbd_engine *engine, int fd);

/* Let every client go once what it asked for is answered. */
void nbd_engine_leave(struct nbd_engine *engine);

/* queue.endpoint must be set, and the channel ours. Until deadline_ns (ENDPOINT_FOREVER: none). */
enum nbd_result nbd_engine_run(struct nbd_engine *engine, uint64_t deadline_ns);

/* What a failed fragment means: an NBD error. */
void nbd_engine_settle(struct nbd_engine *engine, uint32_t fragment, uint32_t error);

/* Any thread. */
void nbd_engine_wake(struct nbd_engine *engine);

/* -- between the parts: nbd_ring.c has the ring's side, nbd_connection.c the sockets', nbd_engine.c the loop */

uint8_t *nbd_page(const struct nbd_engine *engine, uint32_t page);
bool nbd_take_pages(struct nbd_engine *engine, struct nbd_connection *connection, uint32_t count,
                    struct nbd_pages *pages);
void nbd_append(struct nbd_list *list, struct nbd_work *work);

/* There is something to issue for it. */
void nbd_begin(struct nbd_engine *engine, struct nbd_work *work);

/* Stage what waits, in the order of its coming, until the ring is full. False: the ring is corrupt. */
bool nbd_issue_all(struct nbd_engine *engine);

/* Take in every completion that is there. False: the ring is corrupt. */
bool nbd_take_completions(struct nbd_engine *engine, bool *moved);

/* It is over: reply, unless nobody listens any more. */
void nbd_finish(struct nbd_engine *engine, struct nbd_work *work);
void nbd_free_work(struct nbd_engine *engine, struct nbd_work *work);

/* Each returns whether anything moved. */
bool nbd_receive(struct nbd_engine *engine, struct nbd_connection *connection);
bool nbd_send(struct nbd_engine *engine, struct nbd_connection *connection);

/* Nothing more is sent to it or read from it. */
void nbd_break(struct nbd_engine *engine, struct nbd_connection *connection, enum nbd_ending ending);

/* Close it, if it is over and nothing of it is under way. */
void nbd_retire(struct nbd_engine *engine, struct nbd_connection *connection);

#endif
