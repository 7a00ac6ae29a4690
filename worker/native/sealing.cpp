// What finds keys and seals bytes, for Python: find, crc32c and seal_states.
//
// Owns how arguments become buffers and results become objects; the sums stand in checksums.
#include <cstring>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "checksums.h"
#include "functions.h"
#include "objects.h"

namespace keyfold {

// -- keys to slots -------------------------------------------------------------------------------

namespace {

constexpr char kFind[] = "find";

}  // namespace

PyObject* find_of(PyObject* const* a, Py_ssize_t given) {
    Held data, slots;
    Column at, lengths;
    if (!counted(kFind, given, 5) || !data.take_bytes(a[0], {kFind, "data"}) ||
        !at.take(a[1], {kFind, "at"}) || !lengths.take(a[2], {kFind, "lengths"}) ||
        !slots.take_array(a[4], {kFind, "slots"}, "int64", 1, true))
        return nullptr;
    if (!PyDict_CheckExact(a[3])) {
        refuse(PyExc_TypeError, {kFind, "index"}, "a dict");
        return nullptr;
    }
    if (at.size() != lengths.size() || slots.size() != at.size()) {
        refuse(PyExc_ValueError, {kFind, "at, lengths, slots"}, "as many rows in all");
        return nullptr;
    }
    Ref unknown(PyList_New(0));
    if (!unknown) return nullptr;
    for (Py_ssize_t row = 0; row < at.size(); ++row) {
        const int32_t begin = at[row], length = lengths[row];
        int64_t slot = -1;
        if (length != -1) {
            if (!within(data, begin, length)) return refuse_row(kFind, row);
            // Bytes as keys run no Python code when they are compared.
            const Ref key(PyBytes_FromStringAndSize(
                reinterpret_cast<const char*>(data.bytes()) + begin, length));
            if (!key) return nullptr;
            PyObject* found = PyDict_GetItemWithError(a[3], key.get());
            if (found) {
                slot = PyLong_AsLongLong(found);
                if (slot == -1 && PyErr_Occurred()) return nullptr;
            } else if (PyErr_Occurred()) {
                return nullptr;
            }
        }
        slots.items<int64_t>()[row] = slot;
        if (slot >= 0) continue;
        const Ref number(PyLong_FromSsize_t(row));
        if (!number || PyList_Append(unknown.get(), number.get())) return nullptr;
    }
    return unknown.release();
}

// -- checksums -----------------------------------------------------------------------------------

PyObject* crc32c_of(PyObject* const* a, Py_ssize_t given) {
    Held data;
    if (!counted("crc32c", given, 1) || !data.take_bytes(a[0], {"crc32c", "data"})) return nullptr;
    uint32_t sum;
    {
        Unlocked unlocked(data.view().len >= 256 * 1024);
        sum = crc32c(data.bytes(), static_cast<size_t>(data.view().len));
    }
    return PyLong_FromUnsignedLong(sum);
}

namespace {

constexpr char kSeal[] = "seal_states";

}  // namespace

PyObject* seal_states_of(PyObject* const* a, Py_ssize_t given) {
    Held rows;
    int64_t size, sum_at;
    if (!counted(kSeal, given, 4) || !rows.take_bytes(a[0], {kSeal, "rows"}) ||
        !read_int64(a[1], {kSeal, "size"}, size) || !read_int64(a[2], {kSeal, "sum_at"}, sum_at) ||
        !check_list(a[3], {kSeal, "keys"}))
        return nullptr;
    PyObject* keys = a[3];
    const Py_ssize_t count = size < 1 ? 0 : rows.view().len / size;
    Ref sealed(PyList_New(count));
    if (!sealed) return nullptr;
    // From here on nothing is made that the garbage collector knows: the keys stay as they are.
    if (size < 1 || sum_at < 0 || sum_at > size - 4 || rows.view().len % size ||
        PySequence_Fast_GET_SIZE(keys) != count) {
        refuse(PyExc_ValueError, {kSeal, "rows, size, sum_at"}, "a row of `size` bytes for each key");
        return nullptr;
    }
    const size_t body_at = static_cast<size_t>(sum_at) + 4;
    for (Py_ssize_t row = 0; row < count; ++row) {
        PyObject* key = PySequence_Fast_GET_ITEM(keys, row);
        if (!PyBytes_Check(key)) {
            refuse(PyExc_TypeError, {kSeal, "keys"}, "bytes only");
            return nullptr;
        }
        const uint8_t* from = rows.bytes() + row * size;
        uint32_t sum = crc32(0, reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(key)),
                             static_cast<size_t>(PyBytes_GET_SIZE(key)));
        sum = crc32(sum, from + body_at, static_cast<size_t>(size) - body_at);
        PyObject* value =
            PyBytes_FromStringAndSize(reinterpret_cast<const char*>(from), size);
        if (!value) return nullptr;
        char* to = PyBytes_AS_STRING(value) + sum_at;
        for (int byte = 0; byte < 4; ++byte) to[byte] = static_cast<char>(sum >> (8 * byte));
        PyList_SET_ITEM(sealed.get(), row, value);
    }
    return sealed.release();
}

}  // namespace keyfold
