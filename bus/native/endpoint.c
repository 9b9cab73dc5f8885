#include "endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"
#include "synic.h"

/* How to look, measured on two processors that share a cache and on two that do not (an exchange takes 230 or 630 ns): a
 * few looks in a row, for an answer that is there or nearly; then one each PAUSES_A_LOOK pauses of some 25 ns. Each look takes
 * cache lines away from the writer, who wants to finish: without pauses the distant exchange takes 750 ns. */
#define QUICK_LOOKS 12u
#define PAUSES_A_LOOK 3u
#define LOOKS_A_CLOCK 4u /* between two looks at the clock */
#define LEAST_SPIN_NS 50u    /* a limit tuned below this is 0 */
#define LEAST_YIELD_NS 500u

int endpoint_open(struct endpoint *endpoint, int signal_fd, int wait_fd, const struct wait_policy *policy)
{
    int error = 0;
    endpoint->signal_fd = endpoint->wait_fd = endpoint->wait_epoll_fd = -1;
    endpoint->policy = *policy;
    endpoint->data_tuning = endpoint->space_tuning =
        (struct wait_tuning){.spin_ns = policy->spin_ns, .yield_ns = policy->yield_ns};
    if (signal_fd >= 0) {
        endpoint->signal_fd = fcntl(signal_fd, F_DUPFD_CLOEXEC, 0);
        if (endpoint->signal_fd < 0)
            goto failed;
        const int flags = fcntl(endpoint->signal_fd, F_GETFL);
        endpoint->signal_may_block = flags < 0 || !(flags & O_NONBLOCK);
    }
    if (wait_fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET};
        endpoint->wait_fd = fcntl(wait_fd, F_DUPFD_CLOEXEC, 0);
        if (endpoint->wait_fd < 0)
            goto failed;
        endpoint->wait_epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        if (endpoint->wait_epoll_fd < 0)
            goto failed;
        if (epoll_ctl(endpoint->wait_epoll_fd, EPOLL_CTL_ADD, endpoint->wait_fd, &event) < 0)
            goto failed;
    }
    ring_mask(&endpoint->reader);
    return 0;
failed:
    error = errno;
    endpoint_destroy(endpoint);
    return error;
}

void endpoint_destroy(struct endpoint *endpoint)
{
    int *const descriptors[] = {&endpoint->wait_epoll_fd, &endpoint->wait_fd, &endpoint->signal_fd};
    for (unsigned i = 0; i < sizeof descriptors / sizeof *descriptors; i++) {
        if (*descriptors[i] >= 0)
            close(*descriptors[i]);
        *descriptors[i] = -1;
    }
}

/* An eventfd write blocks while the counter is full, unless the open file is O_NONBLOCK; ours are made so. The peer holds
 * the same open file and can clear that bit and fill the counter: its own channel's thread then stands still until
 * endpoint_close() empties the counter, and nobody else notices. The broker, who serves everybody, does not rely on the
 * bit: doorbell.c. */
void endpoint_signal(struct endpoint *endpoint)
{
    const uint64_t one = 1;
    if (endpoint->signal_fd < 0)
        return;
    seam_pass(endpoint->seam, SEAM_SIGNAL);
    if (endpoint->signal_may_block) {
        struct pollfd poll_fd = {.fd = endpoint->signal_fd, .events = POLLOUT};
        if (poll(&poll_fd, 1, 0) != 1)
            return; /* full: the peer has been woken and has not looked yet */
    }
    endpoint->statistics.signals_sent++;
    endpoint_stamp(endpoint, TRACE_SIGNAL, endpoint->traced_id);
    atomic_store(&endpoint->signalling, 1);
    while (!atomic_load(&endpoint->closed) && write(endpoint->signal_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
    atomic_store(&endpoint->signalling, 0);
}

static struct wait_tuning *tuning_of(struct endpoint *endpoint, enum wait_for what)
{
    return what == WAIT_FOR_DATA ? &endpoint->data_tuning : &endpoint->space_tuning;
}

static inline enum wait_result look(struct endpoint *endpoint, enum wait_for what, uint32_t bytes)
{
    if (what == WAIT_FOR_DATA) {
        struct ring_reader *reader = &endpoint->reader;
        /* A packet arrives as two cache lines of data and then one of the header. Touching its lines while we wait brings
         * them together instead of one after the other. Speculative: nothing is read yet. */
        const uint8_t *next = reader->data + reader->next_out;
        __builtin_prefetch(next);
        const enum ring_status status = ring_reader_refresh(reader);
        __builtin_prefetch(next + RING_CACHE_LINE_BYTES);
        return status == RING_EMPTY ? WAIT_NOT_YET : status == RING_OK ? WAIT_READY : WAIT_CORRUPT;
    }
    if (ring_writer_refresh(&endpoint->writer) != RING_OK)
        return WAIT_CORRUPT;
    return bytes <= ring_writable_cached(&endpoint->writer) ? WAIT_READY : WAIT_NOT_YET;
}

static enum wait_result spin_until(struct endpoint *endpoint, enum wait_for what, uint32_t bytes, uint64_t until_ns)
{
    do {
        for (unsigned i = 0; i < LOOKS_A_CLOCK; i++) {
            for (unsigned k = 0; k < PAUSES_A_LOOK; k++)
                clock_relax();
            const enum wait_result result = look(endpoint, what, bytes);
            if (result != WAIT_NOT_YET)
                return result;
        }
        if (atomic_load_explicit(&endpoint->closed, memory_order_relaxed))
            return WAIT_CLOSED;
    } while (clock_now_ns() < until_ns);
    return WAIT_NOT_YET;
}

uint32_t endpoint_spin_limit_ns(const struct endpoint *endpoint, enum wait_for what)
{
    const struct wait_tuning *tuning = what == WAIT_FOR_DATA ? &endpoint->data_tuning : &endpoint->space_tuning;
    if (endpoint->policy.mode == WAIT_BLOCK)
        return 0;
    if (endpoint->policy.mode == WAIT_SPIN)
        return endpoint->policy.spin_ns;
    return tuning->waits % ENDPOINT_PROBE_WAITS == 0 ? endpoint->policy.spin_ns : tuning->spin_ns;
}

static void spinning_paid(struct endpoint *endpoint, struct wait_tuning *tuning)
{
    tuning->waits++;
    tuning->spin_ns = endpoint->policy.spin_ns;
    endpoint->statistics.waits_spun++;
}

enum wait_result endpoint_spin(struct endpoint *endpoint, enum wait_for what, uint32_t bytes, uint32_t limit_ns)
{
    enum wait_result result = look(endpoint, what, bytes);
    if (limit_ns == 0 || result != WAIT_NOT_YET)
        return result;
    for (unsigned i = 0; i < QUICK_LOOKS && result == WAIT_NOT_YET; i++)
        result = look(endpoint, what, bytes);
    if (result == WAIT_NOT_YET)
        result = spin_until(endpoint, what, bytes, clock_now_ns() + limit_ns);
    if (result == WAIT_READY)
        spinning_paid(endpoint, tuning_of(endpoint, what));
    return result;
}

/* A wait that outlasted the spin phase ended in a later one: spin less next time, and yield less if that failed too. */
static void tune_down(struct endpoint *endpoint, struct wait_tuning *tuning, bool yielding_paid)
{
    tuning->waits++;
    tuning->spin_ns = tuning->spin_ns / 2 < LEAST_SPIN_NS ? 0 : tuning->spin_ns / 2;
    if (yielding_paid)
        tuning->yield_ns = endpoint->policy.yield_ns;
    else
        tuning->yield_ns = tuning->yield_ns / 2 < LEAST_YIELD_NS ? 0 : tuning->yield_ns / 2;
}

/* The doorbell rang, or a signal handler ran, or the deadline passed: the caller looks for itself. */
static int sleep_on_doorbell(struct endpoint *endpoint, uint64_t deadline_ns)
{
    struct epoll_event event;
    if (deadline_ns == ENDPOINT_FOREVER)
        return epoll_wait(endpoint->wait_epoll_fd, &event, 1, -1) < 0 ? errno : 0;
    const uint64_t now_ns = clock_now_ns();
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    const struct timespec left = {.tv_sec = (time_t)(left_ns / 1000000000u), .tv_nsec = (long)(left_ns % 1000000000u)};
    return epoll_pwait2(endpoint->wait_epoll_fd, &event, 1, &left, NULL) < 0 ? errno : 0;
}

static int sleep_on_generation(struct endpoint *endpoint, uint32_t seen, uint64_t deadline_ns)
{
    struct timespec until = {0};
    if (deadline_ns != ENDPOINT_FOREVER)
        until = (struct timespec){.tv_sec = (time_t)(deadline_ns / 1000000000u), .tv_nsec = (long)(deadline_ns % 1000000000u)};
    const long result = syscall(SYS_futex, &endpoint->generation, FUTEX_WAIT_BITSET_PRIVATE, seen,
                                deadline_ns == ENDPOINT_FOREVER ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY);
    return result < 0 ? errno : 0;
}

static void wake_followers(struct endpoint *endpoint)
{
    atomic_fetch_add(&endpoint->generation, 1);
    if (atomic_load(&endpoint->sleepers) > 1)
        syscall(SYS_futex, &endpoint->generation, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* The last look before sleeping: from here on the peer signals. WAIT_NOT_YET: sleep now. */
static enum wait_result look_last(struct endpoint *endpoint, enum wait_for what, uint32_t bytes)
{
    /* The flag first: set again from here on, it raises the line again. Cleared after the look, it could take the news of
     * a packet with it. */
    void *const flag_page = atomic_load(&endpoint->flag_page); /* ORDER aim */
    if (flag_page)
        synic_flag_take(flag_page, endpoint->flag);
    const enum ring_status status =
        what == WAIT_FOR_DATA ? ring_unmask(&endpoint->reader) : ring_want_space(&endpoint->writer, bytes);
    if (status == RING_CORRUPT)
        return WAIT_CORRUPT;
    if (status == RING_OK)
        return WAIT_READY;
    return atomic_load(&endpoint->closed) ? WAIT_CLOSED : WAIT_NOT_YET;
}

/* One thread of ours may wait for data and another for space, and there is one doorbell: the first is the leader and sleeps
 * on it, the other sleeps on `generation`. Whoever rings wakes the leader, and the leader, on its way out, the other. */
static enum wait_result sleep_until(struct endpoint *endpoint, enum wait_for what, uint32_t bytes, uint64_t deadline_ns)
{
    enum wait_result result;
    int error = 0;
    atomic_fetch_add(&endpoint->sleepers, 1);
    for (;;) {
        const uint32_t generation = atomic_load(&endpoint->generation);
        uint32_t nobody = 0;
        const bool leads = atomic_compare_exchange_strong(&endpoint->has_leader, &nobody, 1);
        result = look_last(endpoint, what, bytes);
        if (result == WAIT_NOT_YET && deadline_ns != ENDPOINT_FOREVER && clock_now_ns() >= deadline_ns)
            result = WAIT_TIMEOUT;
        if (result == WAIT_NOT_YET)
            error = leads ? sleep_on_doorbell(endpoint, deadline_ns) : sleep_on_generation(endpoint, generation, deadline_ns);
        if (result == WAIT_NOT_YET)
            endpoint_stamp(endpoint, TRACE_WAKE, 0);
        if (leads) {
            atomic_store(&endpoint->has_leader, 0);
            wake_followers(endpoint);
        }
        if (result != WAIT_NOT_YET)
            break;
        if (error == EINTR) {
            result = WAIT_INTERRUPTED;
            break;
        }
    }
    if (what == WAIT_FOR_DATA)
        ring_mask(&endpoint->reader); /* awake: we look for ourselves until we sleep again */
    atomic_fetch_sub(&endpoint->sleepers, 1);
    return result;
}

enum wait_result endpoint_wait(struct endpoint *endpoint, enum wait_for what, uint32_t bytes, uint64_t deadline_ns,
                               struct wait_progress *progress)
{
    struct wait_tuning *tuning = tuning_of(endpoint, what);
    const bool may_sleep = endpoint->wait_fd >= 0;
    const enum wait_mode mode = endpoint->policy.mode;
    const bool probing = tuning->waits % ENDPOINT_PROBE_WAITS == 0;
    uint64_t now_ns = mode == WAIT_BLOCK && may_sleep ? 0 : clock_now_ns(); /* who sleeps at once needs no clock */
    enum wait_result result = WAIT_NOT_YET;
    if (mode == WAIT_SPIN || (mode == WAIT_BLOCK && !may_sleep)) {
        const uint64_t slice_ns = now_ns + ENDPOINT_SLICE_NS;
        result = spin_until(endpoint, what, bytes, slice_ns < deadline_ns ? slice_ns : deadline_ns);
        if (result == WAIT_READY)
            endpoint->statistics.waits_spun++;
        if (result == WAIT_NOT_YET)
            result = clock_now_ns() >= deadline_ns ? WAIT_TIMEOUT : WAIT_INTERRUPTED;
        return result;
    }
    const uint32_t spin_ns = mode == WAIT_ADAPTIVE ? endpoint_spin_limit_ns(endpoint, what) : 0;
    if (spin_ns > progress->spun_ns) {
        const uint64_t until_ns = now_ns + (spin_ns - progress->spun_ns);
        result = spin_until(endpoint, what, bytes, until_ns < deadline_ns ? until_ns : deadline_ns);
        progress->spun_ns = spin_ns;
        if (result == WAIT_READY)
            spinning_paid(endpoint, tuning);
        if (result != WAIT_NOT_YET)
            return result;
        now_ns = clock_now_ns();
    }
    if (mode == WAIT_ADAPTIVE && (!progress->yielded || !may_sleep)) {
        const uint64_t limit_ns = !may_sleep ? ENDPOINT_SLICE_NS : probing ? endpoint->policy.yield_ns : tuning->yield_ns;
        const uint64_t until_ns = now_ns + limit_ns < deadline_ns ? now_ns + limit_ns : deadline_ns;
        while (result == WAIT_NOT_YET && now_ns < until_ns) {
            sched_yield();
            result = atomic_load_explicit(&endpoint->closed, memory_order_relaxed) ? WAIT_CLOSED
                                                                                   : look(endpoint, what, bytes);
            now_ns = clock_now_ns();
        }
        progress->yielded = true;
        if (result == WAIT_READY) {
            endpoint->statistics.waits_yielded++;
            tune_down(endpoint, tuning, true);
        }
        if (result == WAIT_NOT_YET && !may_sleep)
            result = now_ns >= deadline_ns ? WAIT_TIMEOUT : WAIT_INTERRUPTED;
        if (result != WAIT_NOT_YET)
            return result;
    }
    if (!progress->slept) {
        progress->slept = true;
        endpoint->statistics.waits_blocked++;
        if (mode == WAIT_ADAPTIVE)
            tune_down(endpoint, tuning, false);
    }
    return sleep_until(endpoint, what, bytes, deadline_ns);
}

/* Empties a doorbell without ever blocking on it, whoever else reads it. */
static void drain(int fd)
{
    uint64_t count;
    const struct iovec where = {.iov_base = &count, .iov_len = sizeof count};
    const ssize_t got = preadv2(fd, &where, 1, -1, RWF_NOWAIT);
    (void)got;
}

enum wait_result endpoint_arm(struct endpoint *endpoint)
{
    if (endpoint->wait_fd >= 0)
        drain(endpoint->wait_fd); /* an event loop sleeps until it is readable, and would find it so for ever */
    const enum wait_result result = look_last(endpoint, WAIT_FOR_DATA, 0);
    if (result != WAIT_NOT_YET)
        ring_mask(&endpoint->reader);
    return result;
}

/* ORDER aim: the new page first, then our own doorbell. A sleeper that looked at the page before is woken, looks again, and
 *   loads the new one in look_last(). Without the ring the flag could stand in the new page, all that comes would merge
 *   with it, and the sleeper would not be told. */
void endpoint_aim(struct endpoint *endpoint, void *flag_page)
{
    const uint64_t one = 1;
    atomic_store(&endpoint->flag_page, flag_page);
    struct pollfd poll_fd = {.fd = endpoint->wait_fd, .events = POLLOUT};
    if (endpoint->wait_fd < 0 || poll(&poll_fd, 1, 0) != 1)
        return; /* full: it rings already */
    while (write(endpoint->wait_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

void endpoint_close(struct endpoint *endpoint)
{
    const struct timespec pause = {.tv_nsec = ENDPOINT_CLOSE_PAUSE_NS};
    atomic_store(&endpoint->closed, 1);
    if (endpoint->wait_epoll_fd >= 0) {
        /* The doorbell itself will not do: a hostile peer could empty it before our sleeper looks. But an eventfd is always
         * readable or writable, so asking for either, level-triggered, ends this epoll's sleep now and for good. */
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT};
        epoll_ctl(endpoint->wait_epoll_fd, EPOLL_CTL_MOD, endpoint->wait_fd, &event);
    }
    atomic_fetch_add(&endpoint->generation, 1);
    syscall(SYS_futex, &endpoint->generation, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    for (unsigned i = 0; i < ENDPOINT_CLOSE_TRIES && atomic_load(&endpoint->signalling); i++) {
        nanosleep(&pause, NULL);
        if (atomic_load(&endpoint->signalling))
            drain(endpoint->signal_fd); /* that long in one write: the peer made it block */
    }
}
