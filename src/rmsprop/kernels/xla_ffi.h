// The parts of XLA's foreign function interface that are used here: a C ABI, so that no header of jaxlib is needed.
//
// After xla/ffi/api/c_api.h of jaxlib 0.7.0 (version 0.1) and 0.10.2 (version 0.3), which agree on all of this. XLA keeps
// structs compatible by adding fields at their ends; `struct_size` says how much of one there is.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xla_ffi {

struct Extension {
  size_t struct_size;
  int type;
  Extension* next;
};
constexpr int METADATA = 1;

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major, minor;
};

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
  int64_t state_type;  // from 0.2 on
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Error;
struct NewError {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int code;
};
constexpr int INVALID_ARGUMENT = 3;

struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*new_error)(NewError*);
};

enum Type { S32 = 4, F32 = 11, F64 = 12 };
constexpr int BUFFER = 1;  // the kind of all arguments and results

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int type;
  void* data;
  int64_t rank;
  const int64_t* dims;
};

struct List {  // arguments or results
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  const int* kinds;
  void** items;
};

struct Call {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  int stage;
  List arguments, results;  // and attributes, which are not used: with them jaxlib 0.7.0 aborts
};

}  // namespace xla_ffi
