// What writes predictions and records, for Python: pack_records and write_predictions.
//
// Owns how arguments become buffers and results become objects; what is done with the bytes stands
// in records and predictions.
#include <climits>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "functions.h"
#include "objects.h"
#include "predictions.h"
#include "records.h"

namespace keyfold {

// -- records out ---------------------------------------------------------------------------------

namespace {

constexpr char kPack[] = "pack_records";

bool text_of(PyObject* object, const char* argument, Text& text) {
    if (object == Py_None) {
        text = {nullptr, -1};
        return true;
    }
    if (!PyBytes_Check(object)) return refuse(PyExc_TypeError, {kPack, argument}, "bytes or None");
    text = {PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object)};
    return true;
}

bool read_messages(PyObject* keys, PyObject* values, std::vector<Message>& messages) {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(keys);
    if (PySequence_Fast_GET_SIZE(values) != count)
        return refuse(PyExc_ValueError, {kPack, "keys, values"}, "as many of both");
    messages.resize(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
        Message& message = messages[static_cast<size_t>(i)];
        if (!text_of(PySequence_Fast_GET_ITEM(keys, i), "keys", message.key) ||
            !text_of(PySequence_Fast_GET_ITEM(values, i), "values", message.value))
            return false;
    }
    return true;
}

}  // namespace

PyObject* pack_records_of(PyObject* const* a, Py_ssize_t given) {
    int64_t time_ms, limit;
    if (!counted(kPack, given, 4) || !read_int64(a[2], {kPack, "time_ms"}, time_ms) ||
        !read_int64(a[3], {kPack, "limit"}, limit))
        return nullptr;
    std::vector<Message> messages;
    if (!check_list(a[0], {kPack, "keys"}) || !check_list(a[1], {kPack, "values"}) ||
        !read_messages(a[0], a[1], messages))
        return nullptr;
    // Bytearrays are no concern of the garbage collector, tuples and lists are: were they made in
    // between, a collection could run code that changes the lists whose bytes are still to be read.
    std::vector<Ref> batches;
    std::vector<size_t> counts;
    for (size_t done = 0; done < messages.size(); done += counts.back()) {
        const Plan plan = plan_batch(&messages[done], messages.size() - done, limit);
        if (plan.size > INT32_MAX) {
            refuse(PyExc_ValueError, {kPack, "keys, values, limit"}, "batches below 2 GiB");
            return nullptr;
        }
        batches.emplace_back(
            PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(plan.size)));
        if (!batches.back()) return nullptr;
        write_batch(reinterpret_cast<uint8_t*>(PyByteArray_AS_STRING(batches.back().get())),
                    &messages[done], plan, time_ms);
        counts.push_back(plan.count);
    }
    Ref packed(PyList_New(static_cast<Py_ssize_t>(batches.size())));
    if (!packed) return nullptr;
    for (size_t i = 0; i < batches.size(); ++i) {
        PyObject* pair =
            Py_BuildValue("(On)", batches[i].get(), static_cast<Py_ssize_t>(counts[i]));
        if (!pair) return nullptr;
        PyList_SET_ITEM(packed.get(), static_cast<Py_ssize_t>(i), pair);
    }
    return packed.release();
}

// -- predictions ---------------------------------------------------------------------------------

namespace {

constexpr char kWrite[] = "write_predictions";

bool read_form(PyObject* const* a, Form& form) {
    const Named named{kWrite, "place, heads, pieces, tail"};
    if (!PyBytes_Check(a[0]) || !PyBytes_Check(a[3]))
        return refuse(PyExc_TypeError, named, "bytes, two tuples of bytes, bytes");
    form.place = {PyBytes_AS_STRING(a[0]), static_cast<size_t>(PyBytes_GET_SIZE(a[0]))};
    form.tail = {PyBytes_AS_STRING(a[3]), static_cast<size_t>(PyBytes_GET_SIZE(a[3]))};
    if (!read_texts(a[1], named, form.heads) || !read_texts(a[2], named, form.pieces)) return false;
    if (form.pieces.size() < 2 || form.tail.empty() ||
        (!form.heads.empty() && form.heads.size() != form.pieces.size() - 1))
        return refuse(PyExc_ValueError, named, "a tail, a piece more than outputs, a head for each");
    return true;
}

// What the predictions of one call are about, column by column.
struct Causes {
    Held offsets, times_ms, steps, y, gaps;
    bool has_gaps = false;

    bool take(PyObject* const* a) {
        has_gaps = a[5] != Py_None;
        return offsets.take_array(a[0], {kWrite, "offsets"}, "int64", 1, false) &&
               times_ms.take_array(a[2], {kWrite, "times"}, "int64", 1, false) &&
               steps.take_array(a[3], {kWrite, "steps"}, "int64", 1, false) &&
               y.take_array(a[4], {kWrite, "y"}, "float32", 2, false) &&
               (!has_gaps || gaps.take_array(a[5], {kWrite, "gaps"}, "bool", 1, false));
    }
    Py_ssize_t rows() const { return offsets.size(); }
    bool match(Py_ssize_t keys, size_t outputs) const {
        return keys == rows() && times_ms.size() == rows() && steps.size() == rows() &&
               y.size() == rows() && y.size(1) == static_cast<Py_ssize_t>(outputs) &&
               (!has_gaps || gaps.size() == rows());
    }
    Cause of(Py_ssize_t row, PyObject* key) const {
        return {offsets.items<int64_t>()[row],
                times_ms.items<int64_t>()[row],
                steps.items<int64_t>()[row],
                {PyBytes_AS_STRING(key), static_cast<size_t>(PyBytes_GET_SIZE(key))},
                has_gaps && gaps.bytes()[row] != 0};
    }
};

}  // namespace

PyObject* write_predictions_of(PyObject* const* a, Py_ssize_t given) {
    Form form;
    Causes causes;
    if (!counted(kWrite, given, 10) || !causes.take(a + 4) || !read_form(a, form) ||
        !check_list(a[5], {kWrite, "keys"}))
        return nullptr;
    PyObject* const keys = a[5];
    Ref payloads(PyList_New(causes.rows()));
    Ref declined(PyList_New(0));
    if (!payloads || !declined) return nullptr;
    // From here on nothing is made that the garbage collector knows: the keys stay as they are.
    if (!causes.match(PySequence_Fast_GET_SIZE(keys), form.pieces.size() - 1)) {
        refuse(PyExc_ValueError, {kWrite, "offsets, keys, times, steps, y, gaps"},
               "as many rows in all, and outputs one fewer than pieces");
        return nullptr;
    }
    const size_t most = most_bytes(form), outputs = form.pieces.size() - 1;
    std::vector<char> text;
    std::vector<Py_ssize_t> odd;
    for (Py_ssize_t row = 0; row < causes.rows(); ++row) {
        PyObject* key = PySequence_Fast_GET_ITEM(keys, row);
        if (!PyBytes_Check(key)) {
            refuse(PyExc_TypeError, {kWrite, "keys"}, "bytes only");
            return nullptr;
        }
        const Cause cause = causes.of(row, key);
        if (!plain(cause.key)) {
            PyList_SET_ITEM(payloads.get(), row, Py_NewRef(Py_None));
            odd.push_back(row);
            continue;
        }
        if (text.size() < most + cause.key.size()) text.resize(most + cause.key.size());
        const float* y = causes.y.items<float>() + row * static_cast<Py_ssize_t>(outputs);
        const char* end = write_prediction(text.data(), form, cause, y);
        PyObject* payload = PyBytes_FromStringAndSize(text.data(), end - text.data());
        if (!payload) return nullptr;
        PyList_SET_ITEM(payloads.get(), row, payload);
    }
    for (const Py_ssize_t row : odd) {
        Ref number(PyLong_FromSsize_t(row));
        if (!number || PyList_Append(declined.get(), number.get()) < 0) return nullptr;
    }
    return Py_BuildValue("(OO)", payloads.get(), declined.get());
}

}  // namespace keyfold
