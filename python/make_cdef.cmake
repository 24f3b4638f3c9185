# SPDX-License-Identifier: Apache-2.0
# Writes the declarations between the cdef marks of bonsai.h as a Python module:
#   cmake -DHEADER=bonsai.h -DOUTPUT=_cdef.py -P make_cdef.cmake
file(READ "${HEADER}" text)
string(FIND "${text}" "/* cdef begin" begin)
string(FIND "${text}" "/* cdef end" end)
string(REGEX MATCH "#define BONSAI_ABI_VERSION ([0-9]+)" abi_line "${text}")
set(abi_version ${CMAKE_MATCH_1})
if(begin EQUAL -1 OR end EQUAL -1 OR abi_version STREQUAL "")
    message(FATAL_ERROR "${HEADER}: expected the marks \"cdef begin\", \"cdef end\" and BONSAI_ABI_VERSION")
endif()
math(EXPR length "${end} - ${begin}")
string(SUBSTRING "${text}" ${begin} ${length} text)
string(REPLACE "BONSAI_API " "" text "${text}")
file(WRITE "${OUTPUT}" "# SPDX-License-Identifier: Apache-2.0
# Generated from bonsai.h when bonsai was built.
ABI_VERSION = ${abi_version}
CDEF = r'''
${text}'''
")
