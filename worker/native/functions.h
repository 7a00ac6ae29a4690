// The module's functions as Python calls them: their arguments in the order of the wrappers in
// __init__.py, a new reference or null and an error set.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace keyfold {

PyObject* parse_records_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* cut_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* read_numbers_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* pack_records_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* write_predictions_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* find_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* crc32c_of(PyObject* const* arguments, Py_ssize_t count);
PyObject* write_states_of(PyObject* const* arguments, Py_ssize_t count);

}  // namespace keyfold
