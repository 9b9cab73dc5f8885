/* The sending half of Channel: each call stages whole packets, publishes once and signals at most once. */
#include "channel.h"

#define ID_NONE 0

int channel_stage(struct channel *channel, uint16_t type, uint16_t flags, uint64_t transaction_id, const void *extra,
                  size_t extra_bytes, const void *payload, size_t payload_bytes)
{
    struct endpoint *endpoint = &channel->endpoint;
    const uint32_t most = RING_MAX_LENGTH8 * 8; /* above, the narrowing below would lie */
    enum ring_status status = RING_TOO_LARGE;
    endpoint_stamp_write(endpoint, type == RING_PACKET_COMPLETION ? TRACE_ANSWER : TRACE_WRITE, transaction_id);
    if (__builtin_expect(channel->exact, 0)) {
        const uint64_t padding = (0u - (uint32_t)payload_bytes) & CHANNEL_PADDING_MASK;
        const uint64_t said = padding | (uint64_t)(flags >> CHANNEL_MARK_SHIFT) << CHANNEL_PADDING_BITS;
        transaction_id = (transaction_id & CHANNEL_ID_MASK) | said << CHANNEL_SAID_SHIFT;
        flags &= (1u << CHANNEL_MARK_SHIFT) - 1;
    }
    if (extra_bytes <= most && payload_bytes <= most)
        status = ring_write(&endpoint->writer, type, flags, transaction_id, extra, (uint32_t)extra_bytes, payload,
                            (uint32_t)payload_bytes);
    switch (status) {
    case RING_OK:
        endpoint->statistics.packets_sent++;
        endpoint->statistics.bytes_sent += payload_bytes;
        return 0;
    case RING_FULL:
        endpoint->statistics.ring_full++;
        PyErr_SetString(channel->state->ring_full, "no room for this packet now");
        return -1;
    case RING_TOO_LARGE:
        PyErr_Format(PyExc_ValueError, "a packet of %zu bytes cannot fit: this ring's largest takes %u",
                     (size_t)ring_packet_bytes(extra_bytes, payload_bytes),
                     (unsigned)ring_largest_packet_bytes(endpoint->writer.size_bytes));
        return -1;
    default:
        channel_is_corrupt(channel);
        return -1;
    }
}

static void publish(struct channel *channel)
{
    if (!endpoint_publish(&channel->endpoint))
        return;
    channel->inside++;
    channel_signal(channel);
    channel_leave(channel, NULL);
}

/* Stage and publish one packet. Takes over `payload` in every case. */
static PyObject *send_one(struct channel *channel, uint16_t type, uint16_t flags, uint64_t transaction_id,
                          const void *extra, size_t extra_bytes, struct readable *payload)
{
    const int staged = channel_stage(channel, type, flags, transaction_id, extra, extra_bytes, payload->bytes,
                                     (size_t)payload->length);
    readable_close(payload);
    if (staged < 0)
        return NULL;
    publish(channel);
    Py_RETURN_NONE;
}

/* A bool argument. -1 with an exception set. */
static int to_flag(PyObject *object, bool otherwise)
{
    return !object ? otherwise : object == Py_False ? 0 : object == Py_True ? 1 : PyObject_IsTrue(object);
}

PyObject *channel_send(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "transaction_id", "completion"};
    PyObject *values[3];
    uint64_t transaction_id;
    struct readable payload;
    if (parse_arguments("send", names, 3, 1, args, nargs, kwnames, values) < 0)
        return NULL;
    const int completion = to_flag(values[2], false);
    if (completion < 0 || to_u64(values[1], ID_NONE, &transaction_id) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0
        || readable_open_briefly(&payload, values[0]) < 0)
        return NULL;
    return send_one(channel, RING_PACKET_IN_BAND, (uint16_t)completion, transaction_id, NULL, 0, &payload);
}

PyObject *channel_send_completion(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "transaction_id", "ring"};
    PyObject *values[3];
    uint64_t transaction_id;
    struct readable payload;
    if (parse_arguments("send_completion", names, 3, 2, args, nargs, kwnames, values) < 0)
        return NULL;
    const int ring = to_flag(values[2], true);
    if (ring < 0 || to_u64(values[1], ID_NONE, &transaction_id) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0
        || readable_open_briefly(&payload, values[0]) < 0)
        return NULL;
    if (ring)
        return send_one(channel, RING_PACKET_COMPLETION, 0, transaction_id, NULL, 0, &payload);
    const int staged = channel_stage(channel, RING_PACKET_COMPLETION, 0, transaction_id, NULL, 0, payload.bytes,
                                     (size_t)payload.length);
    readable_close(&payload);
    if (staged < 0)
        return NULL;
    channel->owes_signal |= endpoint_publish(&channel->endpoint); /* release() pays it */
    Py_RETURN_NONE;
}

/* Publish the answer to the oldest held packet (None: it wants none), and give that packet back, and no other: whoever takes
 * over finds the others in the ring. */
PyObject *channel_answer(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "transaction_id", "mark"};
    PyObject *values[3];
    uint64_t transaction_id;
    uint32_t mark;
    struct readable payload;
    struct endpoint *endpoint = &channel->endpoint;
    if (parse_arguments("answer", names, 3, 2, args, nargs, kwnames, values) < 0
        || to_u64(values[1], ID_NONE, &transaction_id) < 0 || to_u32(values[2], 0, &mark) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0
        || channel_check(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    if (mark > CHANNEL_MARK_MAX)
        return PyErr_Format(PyExc_ValueError, "mark %u; want 0 to %u", (unsigned)mark, (unsigned)CHANNEL_MARK_MAX);
    if (channel->held == 0 || channel->held > CHANNEL_ANSWERS_MAX)
        return PyErr_Format(PyExc_ValueError, "%u packets are held; want 1 to %d", (unsigned)channel->held,
                            CHANNEL_ANSWERS_MAX);
    if (values[0] != Py_None) {
        if (readable_open_briefly(&payload, values[0]) < 0)
            return NULL;
        const int staged = channel_stage(channel, RING_PACKET_COMPLETION, (uint16_t)(mark << CHANNEL_MARK_SHIFT),
                                         transaction_id, NULL, 0, payload.bytes, (size_t)payload.length);
        readable_close(&payload);
        if (staged < 0)
            return NULL;
    }
    const uint32_t held_to = endpoint->reader.next_out;
    endpoint->reader.next_out = channel->ends[channel->oldest++];
    const bool owed = values[0] != Py_None ? endpoint_publish_and_release(endpoint) : endpoint_release(endpoint);
    endpoint->reader.next_out = held_to;
    channel->held--;
    if (owed) {
        channel->inside++;
        channel_signal(channel);
        channel_leave(channel, NULL);
    }
    Py_RETURN_NONE;
}

/* A packet with an extra header of a fixed part and a list of ranges or page numbers, each a multiple of 8 bytes. */
static PyObject *send_with_list(struct channel *channel, uint16_t type, uint16_t flags, uint64_t transaction_id,
                                const void *fixed, size_t fixed_bytes, const struct readable *list,
                                struct readable *payload)
{
    uint8_t on_stack[512];
    const size_t extra_bytes = fixed_bytes + (size_t)list->length;
    uint8_t *extra = extra_bytes <= sizeof on_stack ? on_stack : PyMem_Malloc(extra_bytes);
    if (!extra) {
        readable_close(payload);
        return PyErr_NoMemory();
    }
    memcpy(extra, fixed, fixed_bytes);
    memcpy(extra + fixed_bytes, list->bytes, (size_t)list->length);
    PyObject *result = send_one(channel, type, flags, transaction_id, extra, extra_bytes, payload);
    if (extra != on_stack)
        PyMem_Free(extra);
    return result;
}

PyObject *channel_send_gpa_direct(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "byte_offset", "byte_count", "pfns", "transaction_id", "completion"};
    PyObject *values[6];
    uint32_t byte_offset, byte_count;
    uint64_t transaction_id;
    struct readable payload, pfns;
    if (parse_arguments("send_gpa_direct", names, 6, 5, args, nargs, kwnames, values) < 0)
        return NULL;
    const int completion = to_flag(values[5], true);
    if (completion < 0 || to_u32(values[1], 0, &byte_offset) < 0 || to_u32(values[2], 0, &byte_count) < 0
        || to_u64(values[4], ID_NONE, &transaction_id) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0
        || readable_open_briefly(&pfns, values[3]) < 0)
        return NULL;
    const uint64_t pages = ((uint64_t)byte_offset + byte_count + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    if (byte_count == 0 || byte_offset >= RING_PAGE_BYTES || (uint64_t)pfns.length != pages * 8) {
        PyErr_Format(PyExc_ValueError, "pfns: %zd bytes given for a range of %u bytes at %u", pfns.length,
                     (unsigned)byte_count, (unsigned)byte_offset);
        readable_close(&pfns);
        return NULL;
    }
    if (readable_open_briefly(&payload, values[0]) < 0) {
        readable_close(&pfns);
        return NULL;
    }
    const uint32_t fixed[4] = {0, 1, byte_count, byte_offset}; /* reserved, range count, the range */
    PyObject *result = send_with_list(channel, RING_PACKET_GPA_DIRECT, (uint16_t)completion, transaction_id, fixed,
                                      sizeof fixed, &pfns, &payload);
    readable_close(&pfns);
    return result;
}

PyObject *channel_send_transfer_pages(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payload", "set_id", "ranges", "transaction_id"};
    PyObject *values[4];
    uint32_t set_id;
    uint64_t transaction_id;
    struct readable payload, ranges;
    if (parse_arguments("send_transfer_pages", names, 4, 4, args, nargs, kwnames, values) < 0
        || to_u32(values[1], 0, &set_id) < 0 || to_u64(values[3], ID_NONE, &transaction_id) < 0
        || channel_check(channel, WAIT_FOR_SPACE) < 0 || readable_open_briefly(&ranges, values[2]) < 0)
        return NULL;
    if (set_id > UINT16_MAX || ranges.length % 8 != 0) {
        PyErr_SetString(PyExc_ValueError, "set_id is 16 bits wide, and a range 8 bytes long");
        readable_close(&ranges);
        return NULL;
    }
    if (readable_open_briefly(&payload, values[0]) < 0) {
        readable_close(&ranges);
        return NULL;
    }
    const uint32_t fixed[2] = {set_id, (uint32_t)(ranges.length / 8)}; /* we do not own the set; range count */
    PyObject *result = send_with_list(channel, RING_PACKET_TRANSFER_PAGES, RING_FLAG_COMPLETION, transaction_id, fixed,
                                      sizeof fixed, &ranges, &payload);
    readable_close(&ranges);
    return result;
}

PyObject *channel_send_raw(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"packet_type", "flags", "extra_header", "payload", "transaction_id"};
    PyObject *values[5];
    uint32_t type, flags;
    uint64_t transaction_id;
    struct readable payload, extra;
    if (parse_arguments("send_raw", names, 5, 5, args, nargs, kwnames, values) < 0
        || to_u32(values[0], 0, &type) < 0 || to_u32(values[1], 0, &flags) < 0
        || to_u64(values[4], ID_NONE, &transaction_id) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0
        || readable_open_briefly(&extra, values[2]) < 0)
        return NULL;
    if (type > UINT16_MAX || flags > UINT16_MAX || extra.length % 8 != 0) {
        PyErr_SetString(PyExc_ValueError, "type and flags are 16 bits wide, and an extra header a multiple of 8 bytes long");
        readable_close(&extra);
        return NULL;
    }
    if (readable_open_briefly(&payload, values[3]) < 0) {
        readable_close(&extra);
        return NULL;
    }
    PyObject *result = send_one(channel, (uint16_t)type, (uint16_t)flags, transaction_id, extra.bytes,
                                (size_t)extra.length, &payload);
    readable_close(&extra);
    return result;
}

PyObject *channel_send_many(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"payloads", "first_transaction_id", "completion"};
    PyObject *values[3];
    uint64_t first_id;
    if (parse_arguments("send_many", names, 3, 1, args, nargs, kwnames, values) < 0)
        return NULL;
    const int completion = to_flag(values[2], false);
    if (completion < 0 || to_u64(values[1], ID_NONE, &first_id) < 0 || channel_check(channel, WAIT_FOR_SPACE) < 0)
        return NULL;
    const Py_ssize_t count = PyList_Size(values[0]);
    if (count < 0) {
        PyErr_SetString(PyExc_TypeError, "payloads must be a list of bytes");
        return NULL;
    }
    struct endpoint *endpoint = &channel->endpoint;
    uint64_t bytes = 0;
    Py_ssize_t sent = 0;
    enum ring_status status = RING_OK;
    for (; sent < count; sent++) {
        PyObject *payload = PyList_GetItem(values[0], sent);
        if (!PyBytes_Check(payload)) {
            ring_unstage(&endpoint->writer);
            PyErr_SetString(PyExc_TypeError, "payloads must be a list of bytes; nothing was sent");
            return NULL;
        }
        const size_t length = (size_t)PyBytes_Size(payload);
        endpoint_stamp_write(endpoint, TRACE_WRITE, first_id + (uint64_t)sent);
        status = length > RING_MAX_LENGTH8 * 8 ? RING_TOO_LARGE
                                               : ring_write(&endpoint->writer, RING_PACKET_IN_BAND, (uint16_t)completion,
                                                            first_id + (uint64_t)sent, NULL, 0,
                                                            PyBytes_AsString(payload), (uint32_t)length);
        if (status != RING_OK)
            break;
        bytes += length;
    }
    if (status == RING_TOO_LARGE || status == RING_CORRUPT) {
        ring_unstage(&endpoint->writer);
        if (status == RING_CORRUPT)
            return channel_is_corrupt(channel);
        return PyErr_Format(PyExc_ValueError, "payload %zd cannot fit into this ring; nothing was sent", sent);
    }
    if (status == RING_FULL)
        endpoint->statistics.ring_full++;
    endpoint->statistics.packets_sent += (uint64_t)sent;
    endpoint->statistics.bytes_sent += bytes;
    if (sent > 0)
        publish(channel);
    return PyLong_FromSsize_t(sent);
}
