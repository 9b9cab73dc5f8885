/* What _core offers to other extensions of this project: the C parts of its objects, for code that runs without the GIL.
 *
 * Fetched once from the module's attribute C_API and checked with core_api_matches(): whoever uses an endpoint was
 * compiled with the same layout of it, or does not load. All functions want the GIL. */
#ifndef PARTVISOR_CORE_API_H
#define PARTVISOR_CORE_API_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "endpoint.h"
#include "gpa.h"

#define CORE_API_CAPSULE "bus.native._core.C_API"

struct core_api {
    uint32_t api_bytes, endpoint_bytes, gpa_range_bytes; /* sizes as _core was compiled */

    /* Become the channel's one sender and one receiver, until channel_leave(). NULL: an exception is set (TypeError,
     * RingClosed, RingCorrupt; RuntimeError: somebody else sends or receives, or packets are held). */
    struct endpoint *(*channel_enter)(PyObject *channel);

    /* corrupt: the peer broke the rules, mark it so. -1: an exception is set, RingClosed or RingCorrupt. */
    int (*channel_leave)(PyObject *channel, bool corrupt);

    /* The table does not change until gpa_leave(): its methods refuse to. NULL: TypeError is set. */
    const struct gpa_table *(*gpa_enter)(PyObject *gpa_map);
    void (*gpa_leave)(PyObject *gpa_map);
};

static inline bool core_api_matches(const struct core_api *api)
{
    return api->api_bytes == sizeof *api && api->endpoint_bytes == sizeof(struct endpoint)
           && api->gpa_range_bytes == sizeof(struct gpa_range);
}

/* Inside _core: put the capsule into the module, whose types are there already. And the GpaMap's share, in gpa_map.c. */
int core_api_add(PyObject *module);
const struct gpa_table *gpa_map_enter(PyObject *gpa_map);
void gpa_map_leave(PyObject *gpa_map);

#endif
