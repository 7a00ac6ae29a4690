// What reads records and events, for Python: parse_records, cut and read_numbers.
//
// Owns how arguments become buffers and results become objects; what is done with the bytes stands
// in records and numbers.
#include <climits>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "functions.h"
#include "numbers.h"
#include "objects.h"
#include "records.h"

namespace keyfold {

// -- records in ----------------------------------------------------------------------------------

namespace {

constexpr char kParse[] = "parse_records";
constexpr Py_ssize_t kManyBytes = 32 * 1024;  // from here on other threads run meanwhile

PyObject* refuse_batch(int64_t base_offset, const char* why) {
    PyErr_Format(PyExc_ValueError, "record batch at offset %lld: %s",
                 static_cast<long long>(base_offset), why);
    return nullptr;
}

}  // namespace

PyObject* parse_records_of(PyObject* const* a, Py_ssize_t given) {
    Held data, offsets, times_ms, spans;
    BatchHead head;
    int64_t count, from_offset;
    if (!counted(kParse, given, 9) || !data.take_bytes(a[0], {kParse, "data"}) ||
        !read_int64(a[1], {kParse, "count"}, count) ||
        !read_int64(a[2], {kParse, "base_offset"}, head.base_offset) ||
        !read_int64(a[3], {kParse, "base_time_ms"}, head.base_time_ms) ||
        !read_int64(a[4], {kParse, "append_time_ms"}, head.append_time_ms) ||
        !read_int64(a[5], {kParse, "from_offset"}, from_offset) ||
        !offsets.take_array(a[6], {kParse, "offsets"}, "int64", 1, true) ||
        !times_ms.take_array(a[7], {kParse, "times"}, "int64", 1, true) ||
        !spans.take_array(a[8], {kParse, "spans"}, "int32", 2, true))
        return nullptr;
    const Py_ssize_t size = data.view().len;
    if (size > INT32_MAX) return refuse_batch(head.base_offset, "it has 2 GiB or more");
    if (count < 0 || count > size / kLeastRecord)
        return refuse_batch(head.base_offset, "it is too short for its count of records");
    if (offsets.size() < count || times_ms.size() < count || spans.size() < count ||
        spans.size(1) != 4) {
        PyErr_Format(PyExc_ValueError,
                     "parse_records: offsets, times, spans: expected room for %lld rows, spans of 4",
                     static_cast<long long>(count));
        return nullptr;
    }
    const Columns columns{offsets.items<int64_t>(), times_ms.items<int64_t>(), spans.items<Span>()};
    const char* why = nullptr;
    int64_t rows;
    {
        Unlocked unlocked(size >= kManyBytes);
        rows = parse_records(data.bytes(), static_cast<size_t>(size), count, head, from_offset,
                             columns, why);
    }
    if (rows < 0) return refuse_batch(head.base_offset, why);
    return PyLong_FromLongLong(rows);
}

namespace {

constexpr char kCut[] = "cut";

}  // namespace

PyObject* cut_of(PyObject* const* a, Py_ssize_t given) {
    Held data;
    Column at, lengths;
    if (!counted(kCut, given, 3) || !data.take_bytes(a[0], {kCut, "data"}) ||
        !at.take(a[1], {kCut, "at"}) || !lengths.take(a[2], {kCut, "lengths"}))
        return nullptr;
    if (at.size() != lengths.size()) {
        refuse(PyExc_ValueError, {kCut, "at, lengths"}, "as many rows in both");
        return nullptr;
    }
    Ref parts(PyList_New(at.size()));
    if (!parts) return nullptr;
    for (Py_ssize_t row = 0; row < at.size(); ++row) {
        const int32_t begin = at[row], length = lengths[row];
        if (!within(data, begin, length)) return refuse_row(kCut, row);
        const auto* text = reinterpret_cast<const char*>(data.bytes()) + begin;
        PyObject* part =
            length < 0 ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(text, length);
        if (!part) return nullptr;
        PyList_SET_ITEM(parts.get(), row, part);
    }
    return parts.release();
}

// -- numbers -------------------------------------------------------------------------------------

namespace {

constexpr char kNumbers[] = "read_numbers";
constexpr Py_ssize_t kManyRows = 128;  // from here on other threads run meanwhile

}  // namespace

PyObject* read_numbers_of(PyObject* const* a, Py_ssize_t given) {
    Held data, table;
    Column at, lengths;
    std::vector<std::string_view> texts;
    if (!counted(kNumbers, given, 5) || !data.take_bytes(a[0], {kNumbers, "data"}) ||
        !at.take(a[1], {kNumbers, "at"}) || !lengths.take(a[2], {kNumbers, "lengths"}) ||
        !table.take_array(a[4], {kNumbers, "table"}, "float64", 2, true) ||
        !read_texts(a[3], {kNumbers, "names"}, texts))
        return nullptr;
    const auto width = static_cast<Py_ssize_t>(texts.size());
    const Py_ssize_t rows = at.size();
    if (lengths.size() != rows || table.size() != rows || table.size(1) != width) {
        refuse(PyExc_ValueError, {kNumbers, "at, lengths, table"},
               "as many rows in all, and a column per name");
        return nullptr;
    }
    NumberReader reader(texts);
    if (width == 0 || !reader.is_distinct()) {
        refuse(PyExc_ValueError, {kNumbers, "names"}, "at least one, and each only once");
        return nullptr;
    }
    std::vector<Py_ssize_t> declined;
    Py_ssize_t row = 0;
    {
        Unlocked unlocked(rows >= kManyRows);
        for (double* out = table.items<double>(); row < rows; ++row, out += width) {
            const int32_t begin = at[row], length = lengths[row];
            if (!within(data, begin, length)) break;
            const uint8_t* text = data.bytes() + begin;
            if (length < 0 || !reader.read(text, text + length, out)) declined.push_back(row);
        }
    }
    if (row < rows) return refuse_row(kNumbers, row);
    Ref list(PyList_New(static_cast<Py_ssize_t>(declined.size())));
    for (size_t i = 0; list && i < declined.size(); ++i) {
        PyObject* number = PyLong_FromSsize_t(declined[i]);
        if (!number) return nullptr;
        PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), number);
    }
    return list.release();
}

}  // namespace keyfold
