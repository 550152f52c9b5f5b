/**
 * read(2), write(2), pread(2) and pwrite(2) for the memory that the bytes of requests go through. A call of Node's fs takes 0.6 us longer
 * than the call itself, koffi with an address that is a number 0.3 us; a request makes three of them (docs/adr/0005-koffi.md).
 */
import * as fs from 'node:fs';
import { addressOf } from './aligned-buffer';
import { declare, interrupted, lastError } from './libc';

const readCall = declare<[number, number, number]>('int read(int fd, int64_t target, int length)');
const writeCall = declare<[number, number, number]>('int write(int fd, int64_t source, int length)');
const preadCall = declare<[number, number, number, number]>(
  'int pread(int fd, int64_t target, int length, int64_t offset)',
);
const pwriteCall = declare<[number, number, number, number]>(
  'int pwrite(int fd, int64_t source, int length, int64_t offset)',
);

/**
 * read(2) into memory of `alignedBuffer`.
 * @returns bytes read. Throws as fs.readSync does.
 */
export function readDescriptor(fd: number, target: Uint8Array): number {
  const count = readCall(fd, knownAddress(target, 0, target.length), target.length);
  if (count < 0) throw lastError('read');
  return count;
}

/**
 * The same on a descriptor with O_NONBLOCK. That there is nothing to read is no error here, and so costs no exception.
 * @returns bytes read; negative when there are none, or for an error, which the next blocking read will meet
 */
export function readIfReady(fd: number, target: Uint8Array): number {
  return readCall(fd, knownAddress(target, 0, target.length), target.length);
}

/** write(2) of the first `length` bytes of memory of `alignedBuffer`. Throws as fs.writeSync does. */
export function writeDescriptor(fd: number, source: Uint8Array, length: number): void {
  const address = knownAddress(source, 0, length);
  while (interrupted(writeCall(fd, address, length), 'write'));
}

/** As fs.readSync, and faster for memory of `alignedBuffer`. */
export function readAt(fd: number, target: Uint8Array, at: number, length: number, offset: number): number {
  if (addressOf(target) === undefined) return fs.readSync(fd, target, at, length, offset);
  const count = preadCall(fd, knownAddress(target, at, length), length, offset);
  if (count < 0) throw lastError('read');
  return count;
}

/** As fs.writeSync, which makes a call again that a signal cut short, and faster for memory of `alignedBuffer`. */
export function writeAt(fd: number, source: Uint8Array, at: number, length: number, offset: number): number {
  if (addressOf(source) === undefined) return fs.writeSync(fd, source, at, length, offset);
  const address = knownAddress(source, at, length);
  for (;;) {
    const count = pwriteCall(fd, address, length, offset);
    if (!interrupted(count, 'write')) return count;
  }
}

/** The kernel believes an address: nobody else looks whether the range lies inside. */
function knownAddress(memory: Uint8Array, at: number, length: number): number {
  const start = addressOf(memory);
  if (start === undefined) throw new TypeError('not memory of alignedBuffer()');
  if (!(at >= 0 && length >= 0 && at + length <= memory.length)) {
    throw new RangeError(`${length} bytes at ${at} are not inside of ${memory.length} bytes`);
  }
  return start + at;
}
