#include "arguments.h"

#include <cstring>

namespace keyfold {

namespace {

struct Type {
    const char* name;
    const char* codes;  // of Python's struct module: those that mean this type here
    Py_ssize_t size;
};

// "long" has eight bytes on every system that this module is built for; the sizes are compared too.
constexpr Type kTypes[] = {
    {"int32", "il", 4}, {"int64", "lq", 8}, {"float32", "f", 4}, {"float64", "d", 8}, {"bool", "?", 1},
};

const Type* type_of(const char* name) {
    for (const Type& type : kTypes) {
        if (!std::strcmp(type.name, name)) return &type;
    }
    return nullptr;
}

bool is_of(const Py_buffer& view, const Type& type) {
    if (view.itemsize != type.size || view.format == nullptr) return false;
    const char* code = view.format + (view.format[0] == '@' || view.format[0] == '=');
    return code[0] != '\0' && code[1] == '\0' && std::strchr(type.codes, code[0]) != nullptr;
}

bool is_aligned(const Py_buffer& view) {
    const auto size = static_cast<uintptr_t>(view.itemsize);
    if (reinterpret_cast<uintptr_t>(view.buf) % size) return false;
    return view.strides == nullptr || view.strides[0] % view.itemsize == 0;
}

}  // namespace

bool refuse(PyObject* type, Named named, const char* expected) {
    PyErr_Format(type, "%s: %s: expected %s", named.function, named.argument, expected);
    return false;
}

bool counted(const char* function, Py_ssize_t given, Py_ssize_t expected) {
    if (given == expected) return true;
    PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments, got %zd", function, expected, given);
    return false;
}

bool Held::take_bytes(PyObject* object, Named named) {
    if (PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE)) {
        PyErr_Clear();
        return refuse(PyExc_TypeError, named, "contiguous bytes");
    }
    return held_ = true;
}

bool Held::take_array(PyObject* object, Named named, const char* name, int dimensions, bool writable,
                      bool strided) {
    const Type* type = type_of(name);
    const int flags = (strided ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS) | PyBUF_FORMAT |
                      (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view_, flags)) PyErr_Clear();
    else held_ = true;
    if (held_ && type != nullptr && is_of(view_, *type) && view_.ndim == dimensions &&
        is_aligned(view_))
        return true;
    PyErr_Format(PyExc_TypeError, "%s: %s: expected %s%s%s array of %s in %d dimension(s)",
                 named.function, named.argument, strided ? "an aligned" : "a C-contiguous",
                 strided ? "" : ", aligned", writable ? ", writable" : "", name, dimensions);
    return false;
}

bool within(const Held& data, int32_t at, int32_t length) {
    const Py_ssize_t size = data.view().len;
    return length == -1 || (length >= 0 && at >= 0 && at <= size && length <= size - at);
}

PyObject* refuse_row(const char* function, Py_ssize_t row) {
    PyErr_Format(PyExc_ValueError, "%s: row %zd: expected a part of the data, or length -1", function,
                 row);
    return nullptr;
}

bool read_int64(PyObject* object, Named named, int64_t& value) {
    if (!PyLong_Check(object)) return refuse(PyExc_TypeError, named, "an int");
    int overflow = 0;
    value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow) return refuse(PyExc_ValueError, named, "an int of 64 bits");
    return true;
}

bool check_list(PyObject* object, Named named) {
    return PyList_Check(object) || PyTuple_Check(object) ||
           refuse(PyExc_TypeError, named, "a list or a tuple");
}

bool read_texts(PyObject* tuple, Named named, std::vector<std::string_view>& texts) {
    if (!PyTuple_Check(tuple)) return refuse(PyExc_TypeError, named, "a tuple of bytes");
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
        PyObject* item = PyTuple_GET_ITEM(tuple, i);
        if (!PyBytes_Check(item)) return refuse(PyExc_TypeError, named, "a tuple of bytes");
        texts.emplace_back(PyBytes_AS_STRING(item), static_cast<size_t>(PyBytes_GET_SIZE(item)));
    }
    return true;
}

}  // namespace keyfold
