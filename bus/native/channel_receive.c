/* The receiving half of Channel: packets as Python objects, or copied into a buffer. */
#include "channel_receive.h"

#include "service_budget_type.h"

/* Of a channel with exact lengths: what the sender said of the packet, as far as it can be true. */
static inline void take_said_off(const struct channel *channel, struct ring_packet *packet)
{
    if (__builtin_expect(!channel->exact, 1))
        return;
    const uint32_t said = (uint32_t)(packet->transaction_id >> CHANNEL_SAID_SHIFT), padding = said & CHANNEL_PADDING_MASK;
    packet->transaction_id &= CHANNEL_ID_MASK;
    packet->flags |= (uint16_t)(said >> CHANNEL_PADDING_BITS << CHANNEL_MARK_SHIFT);
    if (padding <= packet->payload_bytes)
        packet->payload_bytes -= padding;
}

int channel_next_packet(struct channel *channel, struct ring_packet *packet, int64_t timeout_ns)
{
    if (__builtin_expect(channel->endpoint.budget != NULL, 0) && channel_pace(channel) < 0)
        return -1;
    enum ring_status status = ring_peek(&channel->endpoint.reader, packet);
    if (__builtin_expect(channel->owes_signal && status != RING_EMPTY, 0)) {
        channel->owes_signal = false;
        channel_signal(channel);
    }
    if (status == RING_EMPTY) {
        const int ready = channel_wait(channel, WAIT_FOR_DATA, 0, timeout_ns);
        if (ready <= 0)
            return ready;
        status = ring_peek(&channel->endpoint.reader, packet);
    }
    if (__builtin_expect(status != RING_OK, 0)) {
        channel_is_corrupt(channel);
        return -1;
    }
    take_said_off(channel, packet);
    return 1;
}

/* A run of the packet's bytes as a bytes object, copied once. */
static PyObject *bytes_at(struct channel *channel, uint32_t at, uint32_t bytes)
{
    PyObject *object = PyBytes_FromStringAndSize(NULL, bytes);
    if (object && bytes > 0)
        ring_copy_out(&channel->endpoint.reader, at, PyBytes_AsString(object), bytes);
    return object;
}

/* The extra header, copied and then checked: the copy is what the caller will parse. */
static PyObject *extra_of(struct channel *channel, const struct ring_packet *packet)
{
    PyObject *extra = bytes_at(channel, packet->extra_at, packet->extra_bytes);
    if (extra && !ring_extra_is_valid(packet->type, PyBytes_AsString(extra), packet->extra_bytes)) {
        Py_DECREF(extra);
        return channel_is_corrupt(channel);
    }
    return extra;
}

void channel_stamp_found(struct channel *channel, const struct ring_packet *packet)
{
    endpoint_stamp(&channel->endpoint, packet->type == RING_PACKET_COMPLETION ? TRACE_RECEIVE : TRACE_TAKE,
                   packet->transaction_id);
}

/* A new tuple of 4 or 5 objects. Takes the references over, also when it fails; any of them may be NULL. */
static PyObject *tuple_of(Py_ssize_t count, PyObject *const *items)
{
    PyObject *tuple = PyTuple_New(count);
    bool complete = tuple != NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        complete = complete && items[i];
        if (tuple)
            PyTuple_SetItem(tuple, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    if (!complete)
        Py_CLEAR(tuple);
    return tuple;
}

/* (type, flags, transaction id, extra header + payload), and the packet is held. */
static PyObject *packet_tuple(struct channel *channel, const struct ring_packet *packet)
{
    PyObject *body;
    if (packet->extra_bytes == 0) {
        body = bytes_at(channel, packet->payload_at, packet->payload_bytes);
    } else {
        body = bytes_at(channel, packet->extra_at, packet->extra_bytes + packet->payload_bytes);
        if (body && !ring_extra_is_valid(packet->type, PyBytes_AsString(body), packet->extra_bytes)) {
            Py_DECREF(body);
            return channel_is_corrupt(channel);
        }
    }
    PyObject *const items[4] = {PyLong_FromLong(packet->type), PyLong_FromLong(packet->flags),
                                PyLong_FromUnsignedLongLong(packet->transaction_id), body};
    PyObject *tuple = tuple_of(4, items);
    if (tuple)
        channel_hold(channel, packet);
    return tuple;
}

static PyObject *receive_held(struct channel *channel, int64_t timeout_ns)
{
    struct ring_packet packet;
    const int found = channel_next_packet(channel, &packet, timeout_ns);
    if (found < 0)
        return NULL;
    if (found == 0)
        Py_RETURN_NONE;
    return packet_tuple(channel, &packet);
}

PyObject *channel_receive(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"timeout_ns"};
    PyObject *values[1];
    int64_t timeout_ns;
    if (parse_arguments("receive", names, 1, 0, args, nargs, kwnames, values) < 0
        || to_i64(values[0], -1, &timeout_ns) < 0 || channel_enter(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    channel_release(channel);
    return channel_leave(channel, receive_held(channel, timeout_ns));
}

static PyObject *batch(struct channel *channel, uint32_t most, int64_t timeout_ns)
{
    struct ring_packet packet;
    PyObject *list = PyList_New(0);
    if (!list || most == 0)
        return list;
    int found = channel_next_packet(channel, &packet, timeout_ns);
    for (uint32_t count = 0; found == 1;) {
        PyObject *extra = extra_of(channel, &packet);
        if (!extra) {
            found = -1;
            break;
        }
        PyObject *const items[5] = {PyLong_FromLong(packet.type), PyLong_FromLong(packet.flags),
                                    PyLong_FromUnsignedLongLong(packet.transaction_id), extra,
                                    bytes_at(channel, packet.payload_at, packet.payload_bytes)};
        PyObject *tuple = tuple_of(5, items);
        const bool appended = tuple && PyList_Append(list, tuple) == 0;
        Py_XDECREF(tuple);
        if (!appended) {
            found = -1;
            break;
        }
        channel_hold(channel, &packet);
        if (++count == most)
            break;
        const enum ring_status status = ring_peek(&channel->endpoint.reader, &packet);
        if (status != RING_OK)
            break; /* empty, or corrupt: the packets before it are good, and the next call says so */
        take_said_off(channel, &packet);
    }
    if (found < 0 && PyList_Size(list) > 0 && channel->corrupt) {
        PyErr_Clear(); /* likewise: what came before the bad extra header is handed out, and then it is over */
        return list;
    }
    if (found < 0)
        Py_CLEAR(list);
    return list;
}

/* The arguments that both kinds of batch take. */
static int parse_batch(const char *function, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, uint32_t *most,
                       int64_t *timeout_ns)
{
    static const char *const names[] = {"max_packets", "timeout_ns"};
    PyObject *values[2];
    if (parse_arguments(function, names, 2, 1, args, nargs, kwnames, values) < 0 || to_u32(values[0], 0, most) < 0)
        return -1;
    return to_i64(values[1], -1, timeout_ns);
}

PyObject *channel_receive_batch(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    uint32_t most;
    int64_t timeout_ns;
    if (parse_batch("receive_batch", args, nargs, kwnames, &most, &timeout_ns) < 0
        || channel_enter(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    return channel_leave(channel, batch(channel, most, timeout_ns));
}

static bool is_plain(const struct ring_packet *packet)
{
    return packet->type == RING_PACKET_IN_BAND && packet->flags == 0 && packet->extra_bytes == 0;
}

static PyObject *refuse_packet(struct channel *channel, const struct ring_packet *packet)
{
    return PyErr_Format(channel->state->ring_error, "the next packet (type %u, flags %u) needs receive() or receive_batch()",
                        (unsigned)packet->type, (unsigned)packet->flags);
}

static PyObject *payloads(struct channel *channel, uint32_t most, int64_t timeout_ns)
{
    struct ring_packet packet;
    PyObject *list = PyList_New(0);
    if (!list || most == 0)
        return list;
    const int found = channel_next_packet(channel, &packet, timeout_ns);
    if (found == 1 && !is_plain(&packet))
        refuse_packet(channel, &packet);
    if (found < 0 || (found == 1 && !is_plain(&packet))) {
        Py_DECREF(list);
        return NULL;
    }
    if (found == 0)
        return list;
    struct ring_reader *reader = &channel->endpoint.reader;
    for (uint32_t count = 0; count < most; count++) {
        PyObject *payload = bytes_at(channel, packet.payload_at, packet.payload_bytes);
        if (!payload || PyList_Append(list, payload) < 0) {
            Py_XDECREF(payload);
            Py_CLEAR(list);
            break;
        }
        Py_DECREF(payload);
        channel_hold(channel, &packet);
        if (ring_peek(reader, &packet) != RING_OK || !is_plain(&packet))
            break;
        take_said_off(channel, &packet);
    }
    if (list)
        channel_release(channel);
    return list;
}

PyObject *channel_receive_payloads(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    uint32_t most;
    int64_t timeout_ns;
    if (parse_batch("receive_payloads", args, nargs, kwnames, &most, &timeout_ns) < 0
        || channel_enter(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    return channel_leave(channel, payloads(channel, most, timeout_ns));
}

/* Copy the next payload to where `target` says, once it is there: a bytearray may move while we wait. */
static PyObject *receive_into(struct channel *channel, PyObject *byte_array, const Py_buffer *target, int64_t timeout_ns)
{
    struct ring_packet packet;
    const int found = channel_next_packet(channel, &packet, timeout_ns);
    if (found <= 0)
        return found < 0 ? NULL : PyLong_FromLong(-1);
    void *const to = byte_array ? PyByteArray_AsString(byte_array) : target->buf;
    const Py_ssize_t room = byte_array ? PyByteArray_Size(byte_array) : target->len;
    if (packet.payload_bytes > (uint64_t)room)
        return PyErr_Format(PyExc_ValueError, "a payload of %u bytes does not fit into a buffer of %zd",
                            (unsigned)packet.payload_bytes, room);
    ring_copy_out(&channel->endpoint.reader, packet.payload_at, to, packet.payload_bytes);
    channel_hold(channel, &packet);
    channel_release(channel);
    return PyLong_FromUnsignedLong(packet.payload_bytes);
}

PyObject *channel_receive_into(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"buffer", "timeout_ns"};
    PyObject *values[2];
    int64_t timeout_ns;
    Py_buffer target;
    if (parse_arguments("receive_into", names, 2, 1, args, nargs, kwnames, values) < 0
        || to_i64(values[1], -1, &timeout_ns) < 0)
        return NULL;
    if (PyByteArray_CheckExact(values[0])) {
        if (channel_enter(channel, WAIT_FOR_DATA) < 0)
            return NULL;
        return channel_leave(channel, receive_into(channel, values[0], NULL, timeout_ns));
    }
    if (PyObject_GetBuffer(values[0], &target, PyBUF_WRITABLE) < 0)
        return NULL;
    PyObject *result = NULL;
    if (channel_enter(channel, WAIT_FOR_DATA) == 0)
        result = channel_leave(channel, receive_into(channel, NULL, &target, timeout_ns));
    PyBuffer_Release(&target);
    return result;
}

/* Wait for the completion of transaction_id, release it and what came before, return its payload. */
static PyObject *completion_of(struct channel *channel, uint64_t transaction_id)
{
    struct ring_packet packet;
    for (;;) {
        if (channel_next_packet(channel, &packet, -1) < 0)
            return NULL;
        if (packet.type != RING_PACKET_COMPLETION)
            return refuse_packet(channel, &packet); /* it stays where it is */
        if (packet.transaction_id == transaction_id) {
            if (__builtin_expect(packet.flags >> CHANNEL_MARK_SHIFT, 0))
                return refuse_packet(channel, &packet);
            break;
        }
        channel->endpoint.statistics.unknown_ids++;
        channel_hold(channel, &packet);
        channel_release(channel);
    }
    PyObject *answer = bytes_at(channel, packet.payload_at, packet.payload_bytes);
    if (answer) {
        channel_hold(channel, &packet);
        channel_release(channel);
    }
    return answer;
}

PyObject *channel_exchange(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "transaction_id"};
    PyObject *values[2];
    uint64_t transaction_id;
    struct readable payload;
    if (parse_arguments("exchange", names, 2, 2, args, nargs, kwnames, values) < 0
        || to_u64(values[1], 0, &transaction_id) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0
        || channel_check(channel, WAIT_FOR_DATA) < 0 || readable_open_briefly(&payload, values[0]) < 0)
        return NULL;
    const int staged = channel_stage(channel, RING_PACKET_IN_BAND, RING_FLAG_COMPLETION, transaction_id, NULL, 0,
                                     payload.bytes, (size_t)payload.length);
    readable_close(&payload);
    if (staged < 0)
        return NULL;
    channel->owes_signal = endpoint_publish(&channel->endpoint);
    channel->inside++;
    return channel_leave(channel, completion_of(channel, transaction_id));
}

PyObject *channel_reply_and_receive(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "transaction_id", "timeout_ns"};
    PyObject *values[3];
    uint64_t transaction_id;
    int64_t timeout_ns;
    struct readable payload;
    if (parse_arguments("reply_and_receive", names, 3, 2, args, nargs, kwnames, values) < 0
        || to_u64(values[1], 0, &transaction_id) < 0 || to_i64(values[2], -1, &timeout_ns) < 0
        || channel_check(channel, WAIT_FOR_SPACE) < 0 || channel_check(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    if (values[0] == Py_None) {
        channel->owes_signal = endpoint_release(&channel->endpoint);
    } else {
        if (readable_open_briefly(&payload, values[0]) < 0)
            return NULL;
        const int staged = channel_stage(channel, RING_PACKET_COMPLETION, 0, transaction_id, NULL, 0, payload.bytes,
                                         (size_t)payload.length);
        readable_close(&payload);
        if (staged < 0)
            return NULL;
        channel->owes_signal = endpoint_publish_and_release(&channel->endpoint);
    }
    channel->held = 0;
    channel->inside++;
    return channel_leave(channel, receive_held(channel, timeout_ns));
}
