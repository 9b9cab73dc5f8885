/* See service_budget.h. */
#include "service_budget.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

static uint64_t later(uint64_t one, uint64_t other)
{
    return one > other ? one : other;
}

uint64_t service_budget_debt(const struct service_budget *budget, uint64_t now_ns)
{
    const uint64_t paid_ns = atomic_load_explicit(&budget->paid_ns, memory_order_relaxed);
    return atomic_load_explicit(&budget->share, memory_order_relaxed) && paid_ns > now_ns ? paid_ns - now_ns : 0;
}

uint64_t service_budget_charge(struct service_budget *budget, uint64_t served_ns, uint64_t now_ns)
{
    const uint32_t share = atomic_load_explicit(&budget->share, memory_order_relaxed);
    atomic_fetch_add_explicit(&budget->served_ns, served_ns, memory_order_relaxed);
    if (share == 0)
        return 0;
    if (served_ns > SERVICE_DEBT_NS_MAX)
        served_ns = SERVICE_DEBT_NS_MAX;
    uint64_t cost_ns = served_ns * SERVICE_SHARE_ONE / share;
    if (cost_ns > SERVICE_DEBT_NS_MAX)
        cost_ns = SERVICE_DEBT_NS_MAX;
    const uint64_t oldest_ns = now_ns > SERVICE_BURST_NS ? now_ns - SERVICE_BURST_NS : 0;
    uint64_t before_ns = atomic_load_explicit(&budget->paid_ns, memory_order_relaxed), after_ns;
    do
        after_ns = later(before_ns, oldest_ns) + cost_ns;
    while (!atomic_compare_exchange_weak_explicit(&budget->paid_ns, &before_ns, after_ns, memory_order_relaxed,
                                                  memory_order_relaxed));
    return after_ns > now_ns ? after_ns - now_ns : 0;
}

void service_budget_limit(struct service_budget *budget, uint32_t share, uint64_t now_ns)
{
    const uint32_t before = atomic_exchange(&budget->share, share);
    const uint64_t paid_ns = atomic_load(&budget->paid_ns);
    if (share == before)
        return;
    if (before == 0 || share == 0)
        atomic_store(&budget->paid_ns, now_ns > SERVICE_BURST_NS ? now_ns - SERVICE_BURST_NS : 0);
    else if (paid_ns > now_ns)
        atomic_store(&budget->paid_ns, now_ns + (paid_ns - now_ns) * before / share);
}

static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t endpoint_charge(struct endpoint *endpoint)
{
    if (atomic_load_explicit(&endpoint->budget->share, memory_order_relaxed) == 0) {
        endpoint->served_by = 0; /* what is spent while nobody counts is nobody's debt later */
        return 0;
    }
    const uintptr_t self = (uintptr_t)pthread_self();
    const uint64_t cpu_ns = thread_ns(), begun_ns = endpoint->served_cpu_ns;
    const bool is_same = endpoint->served_by == self;
    endpoint->served_by = self;
    endpoint->served_cpu_ns = cpu_ns;
    return service_budget_charge(endpoint->budget, is_same ? cpu_ns - begun_ns : 0, clock_now_ns());
}

/* Sleeps as a follower does in endpoint.c: whoever closes the endpoint counts a generation on. */
bool endpoint_rest(struct endpoint *endpoint, uint64_t rest_ns)
{
    struct service_budget *budget = endpoint->budget;
    const uint64_t begun_ns = clock_now_ns();
    const uint64_t until_ns = begun_ns + (rest_ns < SERVICE_REST_NS_MAX ? rest_ns : SERVICE_REST_NS_MAX);
    const struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};
    bool is_open;
    atomic_store(&endpoint->rests, 1);
    for (;;) {
        const uint32_t generation = atomic_load(&endpoint->generation);
        is_open = !atomic_load(&endpoint->closed); /* after the generation: it is counted on behind `closed` */
        if (!is_open || clock_now_ns() >= until_ns)
            break;
        syscall(SYS_futex, &endpoint->generation, FUTEX_WAIT_BITSET_PRIVATE, generation, &until, NULL, FUTEX_BITSET_MATCH_ANY);
    }
    atomic_store(&endpoint->rests, 0);
    atomic_fetch_add_explicit(&budget->rests, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&budget->rested_ns, clock_now_ns() - begun_ns, memory_order_relaxed);
    return is_open;
}
