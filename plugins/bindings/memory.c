// malloc for an instance that lives for one call: one piece after the other, and none is taken back. A general one asks for
// more memory in nearly every call, which costs more than all the rest of it.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PAGE_BYTES 65536
#define ALIGNMENT 16

extern unsigned char __heap_base;
static uintptr_t end_of_last;

// The length of a piece is kept in front of it.
static size_t *length(void *piece) { return (size_t *)piece - 1; }

void *malloc(size_t bytes) {
  if (end_of_last == 0) end_of_last = (uintptr_t)&__heap_base;
  uintptr_t start = (end_of_last + sizeof(size_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (start < end_of_last || bytes > UINTPTR_MAX - start - PAGE_BYTES) return NULL;
  uintptr_t end = start + bytes;
  size_t pages = (end + PAGE_BYTES - 1) / PAGE_BYTES, now = __builtin_wasm_memory_size(0);
  if (pages > now && __builtin_wasm_memory_grow(0, pages - now) == SIZE_MAX) return NULL;
  *length((void *)start) = bytes;
  end_of_last = end;
  return (void *)start;
}

void free(void *piece) { (void)piece; }

// What was never handed out is zero.
void *calloc(size_t count, size_t bytes) {
  return bytes != 0 && count > SIZE_MAX / bytes ? NULL : malloc(count * bytes);
}

void *realloc(void *piece, size_t bytes) {
  void *moved = malloc(bytes);
  if (piece && moved) memcpy(moved, piece, *length(piece) < bytes ? *length(piece) : bytes);
  return moved;
}
