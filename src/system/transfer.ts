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

/** As fs.readSync into all of `target` from where the descriptor stands, and faster for memory of `alignedBuffer`. */
export function readDescriptor(fd: number, target: Uint8Array): number {
  const start = addressOf(target);
  if (start === undefined) return fs.readSync(fd, target, 0, target.length, null);
  const count = readCall(fd, start, target.length);
  if (count < 0) throw lastError('read');
  return count;
}

/**
 * The same on a descriptor with O_NONBLOCK. That there is nothing to read is no error here, and so costs no exception.
 * @returns bytes read; negative when there are none, or for an error, which the next blocking read will meet, and for memory without an address
 */
export function readIfReady(fd: number, target: Uint8Array): number {
  const start = addressOf(target);
  return start === undefined ? -1 : readCall(fd, start, target.length);
}

/** As fs.writeSync of the first `length` bytes, which makes a call again that a signal cut short. */
export function writeDescriptor(fd: number, source: Uint8Array, length: number): void {
  const start = addressOf(source);
  if (start === undefined) {
    fs.writeSync(fd, source, 0, length);
    return;
  }
  const address = inside(start, source, 0, length);
  while (interrupted(writeCall(fd, address, length), 'write'));
}

/** As fs.readSync, and faster for memory of `alignedBuffer`. */
export function readAt(fd: number, target: Uint8Array, at: number, length: number, offset: number): number {
  const start = addressOf(target);
  if (start === undefined) return fs.readSync(fd, target, at, length, offset);
  const count = preadCall(fd, inside(start, target, at, length), length, offset);
  if (count < 0) throw lastError('read');
  return count;
}

/** As fs.writeSync, which makes a call again that a signal cut short, and faster for memory of `alignedBuffer`. */
export function writeAt(fd: number, source: Uint8Array, at: number, length: number, offset: number): number {
  const start = addressOf(source);
  if (start === undefined) return fs.writeSync(fd, source, at, length, offset);
  const address = inside(start, source, at, length);
  for (;;) {
    const count = pwriteCall(fd, address, length, offset);
    if (!interrupted(count, 'write')) return count;
  }
}

/** The kernel believes an address: nobody else looks whether the range lies inside. */
function inside(start: number, memory: Uint8Array, at: number, length: number): number {
  if (!(at >= 0 && length >= 0 && at + length <= memory.length)) {
    throw new RangeError(`${length} bytes at ${at} are not inside of ${memory.length} bytes`);
  }
  return start + at;
}
