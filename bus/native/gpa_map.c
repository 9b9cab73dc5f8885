/* The type GpaMap: a gpa_table whose ranges are Python buffers, kept alive and handed out as views. */
#include "core_api.h"
#include "gpa.h"
#include "module.h"

#include <string.h>

struct gpa_map {
    PyObject_HEAD
    struct gpa_table table;
    uint32_t users; /* threads that look at the table without the GIL: it must not change */
};

const struct gpa_table *gpa_map_enter(PyObject *object)
{
    ((struct gpa_map *)object)->users++;
    return &((struct gpa_map *)object)->table;
}

void gpa_map_leave(PyObject *object)
{
    ((struct gpa_map *)object)->users--;
}

static int refuse_while_used(const struct gpa_map *map)
{
    if (map->users == 0)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "a server is using this map: stop it first");
    return -1;
}

/* What keeps a range's memory: gpa_range.owner. */
struct mapping {
    Py_buffer buffer;
    PyObject *read_view;  /* read-only, format B */
    PyObject *write_view; /* NULL for a range that is not writable */
};

static void mapping_free(struct mapping *mapping)
{
    Py_XDECREF(mapping->read_view);
    Py_XDECREF(mapping->write_view);
    if (mapping->buffer.obj)
        PyBuffer_Release(&mapping->buffer);
    PyMem_Free(mapping);
}

static struct mapping *mapping_new(PyObject *memory, bool writable)
{
    struct mapping *mapping = PyMem_Calloc(1, sizeof *mapping);
    if (!mapping) {
        PyErr_NoMemory();
        return NULL;
    }
    if (PyObject_GetBuffer(memory, &mapping->buffer, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        PyMem_Free(mapping);
        return NULL;
    }
    PyObject *view = PyMemoryView_FromObject(memory);
    PyObject *flat = view ? PyObject_CallMethod(view, "cast", "s", "B") : NULL;
    Py_XDECREF(view);
    mapping->read_view = flat ? PyObject_CallMethod(flat, "toreadonly", NULL) : NULL;
    if (writable)
        mapping->write_view = flat;
    else
        Py_XDECREF(flat);
    if (!mapping->read_view) {
        mapping_free(mapping);
        return NULL;
    }
    return mapping;
}

static PyObject *gpa_map_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"max_ranges", NULL};
    Py_ssize_t max_ranges = GPA_DEFAULT_MAX_RANGES;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|n:GpaMap", names, &max_ranges))
        return NULL;
    if (max_ranges < 1 || max_ranges > GPA_MAX_RANGES)
        return PyErr_Format(PyExc_ValueError, "max_ranges: 1 to %u expected", GPA_MAX_RANGES);
    struct gpa_range *ranges = PyMem_Calloc((size_t)max_ranges, sizeof *ranges);
    if (!ranges)
        return PyErr_NoMemory();
    struct gpa_map *map = new_instance(type);
    if (!map) {
        PyMem_Free(ranges);
        return NULL;
    }
    map->table = (struct gpa_table){.ranges = ranges, .max_ranges = (uint32_t)max_ranges};
    return (PyObject *)map;
}

/* Taken out of the table first: freeing may run other Python code, which must not find the range any more. */
static void drop_last(struct gpa_map *map)
{
    struct mapping *mapping = map->table.ranges[map->table.count - 1].owner;
    gpa_remove_at(&map->table, map->table.count - 1);
    mapping_free(mapping);
}

static void gpa_map_dealloc(struct gpa_map *map)
{
    while (map->table.count > 0)
        drop_last(map);
    PyMem_Free(map->table.ranges);
    free_instance((PyObject *)map);
}

static PyObject *gpa_map_add(struct gpa_map *map, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"gpfn", "memory", "writable"};
    PyObject *values[3];
    uint64_t gpfn;
    if (parse_arguments("add", names, 3, 2, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &gpfn) < 0)
        return NULL;
    const int writable = values[2] ? PyObject_IsTrue(values[2]) : 1;
    struct mapping *mapping = writable < 0 ? NULL : mapping_new(values[1], writable);
    if (!mapping)
        return NULL;
    if (refuse_while_used(map) < 0) {
        mapping_free(mapping);
        return NULL;
    }
    const uint64_t bytes = (uint64_t)mapping->buffer.len;
    const struct gpa_range range = {.first_pfn = gpfn, .pages = bytes / GPA_PAGE_BYTES, .memory = mapping->buffer.buf,
                                    .writable = writable, .owner = mapping};
    const enum gpa_status status = bytes % GPA_PAGE_BYTES != 0 ? GPA_INVALID : gpa_add(&map->table, &range);
    if (status == GPA_OK)
        Py_RETURN_NONE;
    mapping_free(mapping);
    return PyErr_Format(PyExc_ValueError,
                        status == GPA_OVERLAP      ? "page frame %llu: the range overlaps another"
                        : status == GPA_TABLE_FULL ? "page frame %llu: the table is full"
                                                   : "page frame %llu: not whole pages inside the address space",
                        (unsigned long long)gpfn);
}

static PyObject *gpa_map_remove(struct gpa_map *map, PyObject *first)
{
    uint64_t gpfn;
    if (to_u64(first, 0, &gpfn) < 0 || refuse_while_used(map) < 0)
        return NULL;
    const int64_t index = gpa_index_of(&map->table, gpfn);
    if (index < 0)
        return PyErr_Format(PyExc_LookupError, "no range starts at page frame %llu", (unsigned long long)gpfn);
    struct mapping *mapping = map->table.ranges[index].owner;
    gpa_remove_at(&map->table, (uint32_t)index);
    mapping_free(mapping);
    Py_RETURN_NONE;
}

static PyObject *gpa_map_clear(struct gpa_map *map, PyObject *unused)
{
    if (refuse_while_used(map) < 0)
        return NULL;
    while (map->table.count > 0)
        drop_last(map);
    Py_RETURN_NONE;
}

/* A new list of slices. The ranges' views are taken hold of first: making a slice may run other Python code. */
static PyObject *slices(const struct gpa_span *spans, size_t count, bool write)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        const struct mapping *mapping = spans[i].range->owner;
        PyObject *view = write ? mapping->write_view : mapping->read_view;
        Py_INCREF(view);
        PyList_SetItem(list, (Py_ssize_t)i, view);
    }
    for (size_t i = 0; list && i < count; i++) {
        const Py_ssize_t start = (Py_ssize_t)spans[i].offset_bytes;
        PyObject *slice = PySequence_GetSlice(PyList_GetItem(list, (Py_ssize_t)i), start, start + (Py_ssize_t)spans[i].bytes);
        if (slice)
            PyList_SetItem(list, (Py_ssize_t)i, slice);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *gpa_map_views(struct gpa_map *map, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"byte_offset", "byte_count", "pfns", "write"};
    PyObject *values[4];
    uint32_t byte_offset, byte_count;
    struct readable pfns;
    if (parse_arguments("views", names, 4, 4, args, nargs, kwnames, values) < 0
        || to_u32(values[0], 0, &byte_offset) < 0 || to_u32(values[1], 0, &byte_count) < 0)
        return NULL;
    const int write = PyObject_IsTrue(values[3]);
    if (write < 0 || readable_open(&pfns, values[2]) < 0)
        return NULL;
    const size_t pfn_count = (size_t)pfns.length / 8;
    struct gpa_span on_stack[32], *spans = on_stack;
    if (pfn_count > sizeof on_stack / sizeof *on_stack)
        spans = PyMem_Malloc(pfn_count * sizeof *spans);
    PyObject *list = NULL;
    if (!spans) {
        PyErr_NoMemory();
    } else {
        size_t count = 0;
        const enum gpa_status status =
            pfns.length % 8 != 0 ? GPA_MALFORMED
                                 : gpa_resolve(&map->table, byte_offset, byte_count, pfns.bytes, pfn_count, write, spans, &count);
        if (status == GPA_OK)
            list = slices(spans, count, write);
        else if (status == GPA_NOT_MAPPED)
            PyErr_SetString(PyExc_LookupError, write ? "a page of the range is not mapped for writing"
                                                     : "a page of the range is not mapped");
        else
            PyErr_Format(PyExc_ValueError, "%zd bytes of page numbers do not make a range of %u bytes at %u", pfns.length,
                         (unsigned)byte_count, (unsigned)byte_offset);
    }
    if (spans != on_stack)
        PyMem_Free(spans);
    readable_close(&pfns);
    return list;
}

static PyMethodDef gpa_map_methods[] = {
    {"add", (PyCFunction)(void (*)(void))gpa_map_add, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"remove", (PyCFunction)gpa_map_remove, METH_O, NULL},
    {"clear", (PyCFunction)gpa_map_clear, METH_NOARGS, NULL},
    {"views", (PyCFunction)(void (*)(void))gpa_map_views, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gpa_map_slots[] = {
    {Py_tp_doc, "Guest physical ranges -> host memory: what a device server may touch."},
    {Py_tp_new, gpa_map_new},
    {Py_tp_dealloc, gpa_map_dealloc},
    {Py_tp_methods, gpa_map_methods},
    {0, NULL},
};

PyType_Spec gpa_map_spec = {
    .name = "bus.native.GpaMap",
    .basicsize = sizeof(struct gpa_map),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gpa_map_slots,
};
