/** fallocate(2): room for a range, or holes in it. */
import { declare, interrupted } from './libc';

const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;

const FALLOCATE_FLAGS = {
  /** Reserves blocks; the file grows to the end of the range. */
  allocate: 0,
  /** Reserves blocks, also past the end; the size stays. */
  'allocate-keep-size': FALLOC_FL_KEEP_SIZE,
  /** Gives blocks back; the range reads zero, the size stays. */
  'punch-hole': FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
  /** The range reads zero and keeps its blocks; the file grows to the end of the range. */
  'zero-range': FALLOC_FL_ZERO_RANGE,
} as const;

export type FallocateHow = keyof typeof FALLOCATE_FLAGS;

const fallocateCall = declare<[number, number, number, number]>(
  'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
);

/** @param length > 0, bytes; so is `offset` */
export function fallocate(fd: number, mode: FallocateHow, offset: number, length: number): void {
  while (interrupted(fallocateCall(fd, FALLOCATE_FLAGS[mode], offset, length), 'fallocate'));
}
