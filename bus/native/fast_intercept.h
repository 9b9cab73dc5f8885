/* A port access of a guest whose VP the broker has lent to C: told to the parent, and answered, without Python. No Python.
 *
 * The state machine (runtime/hypervisor/intercepts.py) decides. It lends what it has decided already: a VP whose guest may
 * access ports and whose parent is listening, the ports that are intercepted, the VP's registers. Here is done only what
 * these say, and exactly what the state machine would have done. Everything else is left for it, nothing having changed. */
#ifndef PARTVISOR_FAST_INTERCEPT_H
#define PARTVISOR_FAST_INTERCEPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAST_REGISTERS 18u      /* from RAX to RFLAGS, as the register names count */
#define FAST_RANGES_MAX 64u     /* INTERCEPTS_PER_PARTITION_MAX */
#define FAST_LENT_MAX 16u       /* VPs at once */
#define FAST_NAPS_MAX 8 /* for an access whose parent has not taken the message before it; then Python queues it */
#define FAST_PACKET_MAX_BYTES 128u /* no call that is served here needs more */
#define FAST_REPLY_MAX_BYTES 32u

enum fast_register { FAST_RAX = 0, FAST_RCX = 1, FAST_RDX = 2, FAST_RSI = 6, FAST_RDI = 7, FAST_RIP = 16, FAST_RFLAGS = 17 };
enum fast_mask { FAST_READ = 1, FAST_WRITE = 2 };

/* A range of ports that the parent wants to be told of. */
struct fast_range {
    uint16_t first, last;
    uint32_t access; /* of enum fast_mask */
};
_Static_assert(sizeof(struct fast_range) == 8, "runtime/hypervisor/lent_vps.py says the same");

/* A single access: IN or OUT of one to four bytes. */
struct fast_access {
    uint16_t port;
    uint8_t size;
    bool write;
};

struct fast_vp {
    uint64_t child;
    uint32_t vp;
    void *sim_page; /* of the parent's VP that is told; on SINT 0 */
    uint64_t registers[FAST_REGISTERS];
    uint32_t range_count;
    struct fast_range ranges[FAST_RANGES_MAX];
    bool suspended; /* the VP stands at `access`, and its call is not answered */
    struct fast_access access;
};

/* A call as it came, of those that may be served here: [code, {name: unsigned integer}]. */
struct fast_call {
    uint64_t code;
    uint32_t given; /* of enum fast_argument, a bit each */
    uint64_t values[8];
};
enum fast_argument { FAST_VP, FAST_PORT, FAST_SIZE, FAST_IS_WRITE, FAST_VALUE, FAST_PARTITION, FAST_TYPE, FAST_ARGUMENTS };

/* False: anything else, well formed or not. */
bool fast_decode(struct fast_call *call, const uint8_t *packet, size_t bytes);

enum fast_result {
    FAST_LEFT,     /* for Python; nothing has changed */
    FAST_TOLD,     /* the VP is suspended, its parent has the message, and its line must be raised */
    FAST_ANSWERED, /* the access is over: *value is what was read */
};

/* Whether its parent's slot has room for a message just now. */
bool fast_may_tell(const struct fast_vp *vp);

/* ACCESS_PORT of the VP's own partition. */
enum fast_result fast_access_port(struct fast_vp *vp, const struct fast_call *call, uint64_t *value);

/* REGISTER_INTERCEPT_RESULT of its parent: FAST_LEFT or FAST_ANSWERED. */
enum fast_result fast_register_result(struct fast_vp *vp, const struct fast_call *call, uint64_t *value);

/* Packets as runtime/codec.py makes them: what an access returns, and a call that returns nothing. Their length. */
size_t fast_encode_access_reply(uint8_t packet[FAST_REPLY_MAX_BYTES], uint64_t value);
size_t fast_encode_done(uint8_t packet[FAST_REPLY_MAX_BYTES]);

#endif
