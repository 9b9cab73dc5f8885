/* What a server may spend on a client that has a cap: processor time of the thread that serves it.
 *
 * The work that somebody has done for him costs others as much as his own would. So who serves a client with a cap takes
 * the time that it took, and rests when that is more than the cap: nothing is lost, and it is only late.
 *
 * A budget is one number: the moment up to which everything is paid. Serving moves it on by time / share, and it never lies
 * further back than a burst: nobody saves up more than that. Where it lies ahead, that is the debt. So in any time t a
 * client gets at most share * (t + burst), and what was under way when that was used up. */
#ifndef PARTVISOR_SERVICE_BUDGET_H
#define PARTVISOR_SERVICE_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "endpoint.h"

#define SERVICE_SHARE_ONE 65536u         /* a whole processor, as the property CPU_CAP counts */
#define SERVICE_BURST_NS 25000000u       /* what was not used may be had so much later: a burst of requests is not late at once */
#define SERVICE_DEBT_NS_MAX 10000000000u /* a debt that one turn can make: a backend that failed to stop in time is no life sentence */
#define SERVICE_REST_NS_MAX 1000000000u  /* of one rest: then there is a look at whether the share is another */

struct service_budget {
    _Atomic uint64_t paid_ns;  /* on clock_now_ns()'s clock */
    _Atomic uint32_t share;    /* of SERVICE_SHARE_ONE; 0: as much as it likes */
    _Atomic uint64_t served_ns, rested_ns, rests;
};

/* It was served for so long. How long it is to rest now. Any thread. */
uint64_t service_budget_charge(struct service_budget *budget, uint64_t served_ns, uint64_t now_ns);

/* The same without anything to pay. */
uint64_t service_budget_debt(const struct service_budget *budget, uint64_t now_ns);

/* Another share, from now on: a debt becomes as long as it would have been with it. 0: none, and no debt. */
void service_budget_limit(struct service_budget *budget, uint32_t share, uint64_t now_ns);

/* Charge what the calling thread spent since it was here last. How long it is to rest, before it looks for more. The
 * endpoint must have a budget. Caller: the endpoint's one receiver. */
uint64_t endpoint_charge(struct endpoint *endpoint);

/* Rest. False: the endpoint was closed meanwhile. Caller: as above, holding nothing that others want. */
bool endpoint_rest(struct endpoint *endpoint, uint64_t rest_ns);

/* Both, for code without Python. */
static inline bool endpoint_pace(struct endpoint *endpoint)
{
    uint64_t rest_ns;
    while (__builtin_expect(endpoint->budget != NULL, 0) && (rest_ns = endpoint_charge(endpoint)) > 0)
        if (!endpoint_rest(endpoint, rest_ns))
            return false;
    return true;
}

#endif
