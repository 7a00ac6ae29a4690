// What finds keys, sums up bytes and writes states, for Python: find, crc32c and write_states.
//
// Owns how arguments become buffers and results become objects; the sums stand in checksums.
#include <charconv>
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

// -- states --------------------------------------------------------------------------------------

namespace {

constexpr char kStates[] = "write_states";
constexpr size_t kMostDigits = 20;

// The head of a bulk string in Redis's protocol.
char* write_head(char* out, size_t size) {
    *out++ = '$';
    out = std::to_chars(out, out + kMostDigits, size).ptr;
    *out++ = '\r';
    *out++ = '\n';
    return out;
}

char* write_text(char* out, const char* from, size_t size) {
    std::memcpy(out, from, size);
    out += size;
    *out++ = '\r';
    *out++ = '\n';
    return out;
}

// Bytes that one bulk string takes beside its text, at most.
constexpr size_t kAround = 1 + kMostDigits + 2 + 2;

// The row's text with the checksum of key and of what stands behind it in its place.
char* write_state(char* out, const char* row, size_t size, size_t sum_at, std::string_view key) {
    const size_t body_at = sum_at + 4;
    uint32_t sum = crc32(0, reinterpret_cast<const uint8_t*>(key.data()), key.size());
    sum = crc32(sum, reinterpret_cast<const uint8_t*>(row) + body_at, size - body_at);
    out = write_head(out, size);
    char* const state = out;
    out = write_text(out, row, size);
    for (int byte = 0; byte < 4; ++byte)
        state[sum_at + static_cast<size_t>(byte)] = static_cast<char>(sum >> (8 * byte));
    return out;
}

}  // namespace

PyObject* write_states_of(PyObject* const* a, Py_ssize_t given) {
    Held rows, prefix;
    int64_t size, sum_at;
    if (!counted(kStates, given, 5) || !prefix.take_bytes(a[0], {kStates, "prefix"}) ||
        !rows.take_bytes(a[1], {kStates, "rows"}) ||
        !read_int64(a[2], {kStates, "size"}, size) ||
        !read_int64(a[3], {kStates, "sum_at"}, sum_at) || !check_list(a[4], {kStates, "keys"}))
        return nullptr;
    PyObject* keys = a[4];
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(keys);
    if (size < 4 || sum_at < 0 || sum_at > size - 4 || rows.view().len % size ||
        rows.view().len / size != count) {
        refuse(PyExc_ValueError, {kStates, "rows, size, sum_at"},
               "a row of `size` bytes for each key");
        return nullptr;
    }
    const auto row_size = static_cast<size_t>(size);
    const size_t prefix_size = static_cast<size_t>(prefix.view().len);
    size_t most = 0;
    for (Py_ssize_t row = 0; row < count; ++row) {
        PyObject* key = PySequence_Fast_GET_ITEM(keys, row);
        if (!PyBytes_Check(key)) {
            refuse(PyExc_TypeError, {kStates, "keys"}, "bytes only");
            return nullptr;
        }
        most += static_cast<size_t>(PyBytes_GET_SIZE(key)) + prefix_size + row_size + 2 * kAround;
    }
    // Bytes are no concern of the garbage collector: the keys stay as they are.
    Ref written(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(most)));
    if (!written) return nullptr;
    char* const begin = PyBytes_AS_STRING(written.get());
    char* out = begin;
    for (Py_ssize_t row = 0; row < count; ++row) {
        PyObject* object = PySequence_Fast_GET_ITEM(keys, row);
        const std::string_view key(PyBytes_AS_STRING(object),
                                   static_cast<size_t>(PyBytes_GET_SIZE(object)));
        out = write_head(out, prefix_size + key.size());
        std::memcpy(out, prefix.bytes(), prefix_size);
        out = write_text(out + prefix_size, key.data(), key.size());
        const auto* from = reinterpret_cast<const char*>(rows.bytes()) + row * size;
        out = write_state(out, from, row_size, static_cast<size_t>(sum_at), key);
    }
    PyObject* whole = written.release();
    if (_PyBytes_Resize(&whole, out - begin)) return nullptr;
    return whole;
}

}  // namespace keyfold
