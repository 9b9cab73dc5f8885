/* What every operation of a Channel does: refuse, wait, ring the peer, let go at the end. channel_type.c has the type. */
#include "channel.h"

#include "clock.h"

int channel_refuse(struct channel *channel, enum wait_for side)
{
    if (channel->closed)
        PyErr_SetString(channel->state->ring_closed, "this end of the channel is closed");
    else if (channel->corrupt)
        PyErr_SetString(channel->state->ring_corrupt, "the peer broke the ring's rules; the channel is finished");
    else
        PyErr_SetString(PyExc_RuntimeError, side == WAIT_FOR_DATA ? "another thread is receiving on this channel"
                                                                  : "another thread is sending on this channel");
    return -1;
}

PyObject *channel_is_corrupt(struct channel *channel)
{
    channel->corrupt = true;
    channel_refuse(channel, WAIT_FOR_DATA);
    return NULL;
}

void channel_last_leaves(struct channel *channel)
{
    Py_CLEAR(channel->memory_view);
    Py_CLEAR(channel->aimed_pages);
    channel->endpoint.budget = NULL;
    Py_CLEAR(channel->budget);
    channel->endpoint.trace = NULL;
    Py_CLEAR(channel->trace);
    if (channel->flags.obj)
        PyBuffer_Release(&channel->flags);
    if (channel->memory.obj)
        PyBuffer_Release(&channel->memory);
    channel->endpoint.journal = NULL;
    channel->endpoint.seam = NULL;
    endpoint_observe(&channel->endpoint);
    if (channel->journal.obj)
        PyBuffer_Release(&channel->journal);
    if (channel->seam.obj)
        PyBuffer_Release(&channel->seam);
}

void channel_signal(struct channel *channel)
{
    PyThreadState *thread = PyEval_SaveThread();
    endpoint_signal(&channel->endpoint);
    PyEval_RestoreThread(thread);
}

int channel_wait(struct channel *channel, enum wait_for what, uint32_t bytes, int64_t timeout_ns)
{
    struct endpoint *endpoint = &channel->endpoint;
    struct wait_progress progress = {0};
    enum wait_result result = WAIT_NOT_YET;
    bool owes_signal = channel->owes_signal, raised = false;
    channel->owes_signal = false;
    if (timeout_ns == 0) {
        if (owes_signal)
            channel_signal(channel);
        result = endpoint_spin(endpoint, what, bytes, 0);
    } else if (!owes_signal) { /* the peer is awake: it may answer before the GIL could be dropped and taken again */
        const uint32_t limit_ns = endpoint_spin_limit_ns(endpoint, what);
        progress.spun_ns = limit_ns < ENDPOINT_LOCKED_SPIN_NS ? limit_ns : ENDPOINT_LOCKED_SPIN_NS;
        result = endpoint_spin(endpoint, what, bytes, progress.spun_ns);
    }
    if (result == WAIT_NOT_YET && timeout_ns != 0) {
        const uint64_t deadline_ns = timeout_ns < 0 ? ENDPOINT_FOREVER : clock_now_ns() + (uint64_t)timeout_ns;
        channel->waits[what] = true;
        do {
            PyThreadState *thread = PyEval_SaveThread();
            if (owes_signal)
                endpoint_signal(endpoint);
            owes_signal = false;
            result = endpoint_wait(endpoint, what, bytes, deadline_ns, &progress);
            PyEval_RestoreThread(thread);
            raised = result == WAIT_INTERRUPTED && PyErr_CheckSignals() < 0;
        } while (result == WAIT_INTERRUPTED && !raised);
        channel->waits[what] = false;
        if (raised)
            return -1;
    }
    /* A handler, or another thread, may have closed the channel meanwhile. */
    if (result == WAIT_CLOSED || channel->closed)
        return channel_refuse(channel, what);
    if (result == WAIT_CORRUPT) {
        channel_is_corrupt(channel);
        return -1;
    }
    return result == WAIT_READY;
}
