/** Memory at a chosen address modulo the page size. */
import { koffi } from './koffi';

/** The largest page that x86-64 and arm64 kernels have by default; 16 KiB and 64 KiB kernels gain as much from 4 KiB alignment. */
export const PAGE_BYTES = 4096;

const ADDRESS = Symbol('address');

interface Addressed {
  [ADDRESS]?: number;
}

/** @returns where the bytes lie; undefined when they were not made by `alignedBuffer`, or a number cannot say it */
export function addressOf(bytes: Uint8Array & Addressed): number | undefined {
  return bytes[ADDRESS];
}

/**
 * A zeroed buffer of `length` bytes whose byte `alignedAt` lies at the start of a page. The kernel copies between a process and
 * page-sized chunks of a request: with both sides aligned it makes half as many copies.
 */
export function alignedBuffer(length: number, alignedAt: number): Buffer {
  // Not from Node's pool, and never moved: the address stays what it is now.
  const memory = Buffer.from(new ArrayBuffer(length + PAGE_BYTES));
  const address = koffi.address(memory);
  const skip = (PAGE_BYTES - ((Number(address % BigInt(PAGE_BYTES)) + alignedAt) % PAGE_BYTES)) % PAGE_BYTES;
  const buffer: Buffer & Addressed = memory.subarray(skip, skip + length);
  // A number that is not exact would name other memory. Addresses of processes have 47 bits, but for tagged ones.
  if (address < Number.MAX_SAFE_INTEGER - memory.length) buffer[ADDRESS] = Number(address) + skip;
  return buffer;
}
