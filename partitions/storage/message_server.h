/* The message server's fast path: plain READs and WRITEs, from socket to file and back, without Python and the GIL.
 *
 * It takes what is ordinary and leaves the rest, as block_server.h does: whatever is unusual, wrong or fails, and whatever a
 * predecessor may have dealt with, is handed to message_service.py, received as it is, and decided there anew. */
#ifndef PARTVISOR_MESSAGE_SERVER_H
#define PARTVISOR_MESSAGE_SERVER_H

#include <stdatomic.h>

#include "block_request.h"
#include "device_lock.h"
#include "message_wire.h"
#include "seam.h"

/* The client's record, in memory that outlives the process: message_service.py, which has its layout. */
struct message_record {
    uint64_t reserved_1;
    _Atomic uint64_t phase;
    uint64_t session, reserved_2[2];
    uint64_t transaction_id;
    uint64_t done; /* the last step of a client's turn that was done, replied to or not */
};
_Static_assert(offsetof(struct message_record, phase) == 8, "record layout");
_Static_assert(offsetof(struct message_record, transaction_id) == 40, "record layout");
_Static_assert(offsetof(struct message_record, done) == 48, "record layout");

#define MESSAGE_TURN_REQUESTS 64u   /* that are served without looking at what the client may have of us */
#define MESSAGE_TURN_BYTES 1048576u /* and so many bytes moved; one request more goes beyond it */

enum message_phase { MESSAGE_IDLE, MESSAGE_BEGUN, MESSAGE_DONE };

/* One client's. One thread runs it; numbers may be read by any. */
struct message_server {
    int fd; /* where the bytes are */
    struct block_geometry disk;
    struct device_lock *lock;
    struct message_record *record;
    struct seam *seam; /* or NULL */
    const _Atomic uint32_t *armed; /* not 0: a fault is armed on this disk, and nothing is done here */
    struct message_head *head; /* of the last message received, and what stands behind it; message_service.py has them too */
    struct storvsp_packet *packet;
    uint8_t *area; /* MESSAGE_DATA_BYTES_MAX */
    size_t received_bytes; /* of the last message, that was handed over */
    bool truncated;        /* it was longer */
    bool holds_device;     /* it was begun; until it is done the device is the caller's */
    _Atomic bool busy;     /* a request is being executed, or waits for the device */
    _Atomic uint64_t reads, writes, bytes_read, bytes_written;
};

enum message_server_result {
    MESSAGE_SERVER_LEFT, /* a message for Python: in head, packet and area */
    MESSAGE_SERVER_GONE, /* the client, or our side of the socket */
    MESSAGE_SERVER_PAUSED, /* by a signal, or this turn is over */
};

/* Serve for one turn, or until something for Python comes. With holds_device the lock is the caller's to give back, and the
 * mark BEGUN stands; not to be called before that. */
enum message_server_result message_server_run(struct message_server *server, int socket);

#endif
