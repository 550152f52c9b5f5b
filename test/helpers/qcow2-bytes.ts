/** The bytes of a qcow2 file, to be damaged: written from the specification alone, with nothing of the code under test. */
import * as fs from 'node:fs';

const COPIED = 1n << 63n;
const OFFSET = 0x00ff_ffff_ffff_fe00n;

export class Qcow2Bytes {
  bytes: Buffer;

  /** @param source a file, or its bytes */
  constructor(source: string | Buffer) {
    this.bytes = typeof source === 'string' ? fs.readFileSync(source) : source;
  }

  save(file: string): void {
    fs.writeFileSync(file, this.bytes);
  }

  u64(at: number): bigint {
    return this.bytes.readBigUInt64BE(at);
  }

  set64(at: number, value: bigint | number): void {
    this.bytes.writeBigUInt64BE(BigInt(value), at);
  }

  u32(at: number): number {
    return this.bytes.readUInt32BE(at);
  }

  set32(at: number, value: number): void {
    this.bytes.writeUInt32BE(value, at);
  }

  /** Sets, clears or turns bits of a 64-bit field. */
  or64(at: number, bits: bigint): void {
    this.set64(at, this.u64(at) | bits);
  }

  xor64(at: number, bits: bigint): void {
    this.set64(at, this.u64(at) ^ bits);
  }

  get clusterSize(): number {
    return 2 ** this.u32(20);
  }
  /** Host offset of the active L1 table. */
  get l1(): number {
    return Number(this.u64(40));
  }
  get refcountTable(): number {
    return Number(this.u64(48));
  }
  get snapshots(): number {
    return Number(this.u64(64));
  }

  /** Host offset of refcount block `index`. */
  block(index = 0): number {
    return Number(this.u64(this.refcountTable + index * 8));
  }

  /** Host offset of the L2 table behind entry `index` of an L1 table. */
  l2(index = 0, l1 = this.l1): number {
    return Number(this.u64(l1 + index * 8) & OFFSET);
  }

  /** Host offset of the entry for guest cluster `index` of the first L2 table. */
  entryAt(index: number, entryBytes = 8): number {
    return this.l2() + index * entryBytes;
  }

  /** Host offset that an entry names. */
  target(at: number): number {
    return Number(this.u64(at) & OFFSET);
  }

  /** Sets the 16-bit count of a cluster in block 0. */
  setCount(cluster: number, count: number): void {
    this.bytes.writeUInt16BE(count, this.block() + cluster * 2);
  }

  /** The bitmap directory; 0 without one. */
  get bitmapDirectory(): number {
    const head = Buffer.alloc(8);
    head.writeUInt32BE(0x23852875, 0);
    head.writeUInt32BE(24, 4);
    const at = this.bytes.indexOf(head);
    return at < 0 ? 0 : Number(this.u64(at + 24));
  }

  static copied(offset: number | bigint): bigint {
    return COPIED | BigInt(offset);
  }
}
