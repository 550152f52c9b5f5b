/** QED images made byte by byte, so that they can be wrong in every way. */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import { type QedHeader, readQedHeader } from '../../../src/formats/qed/header';
import { FileStorage } from '../../../src/storage/file';

/** Fields as they are on disk. */
export interface HeaderFields {
  magic: string;
  clusterSize: number;
  tableSize: number;
  headerSize: number;
  features: bigint;
  compat: bigint;
  autoclear: bigint;
  l1Offset: bigint;
  size: bigint;
  nameOffset: number;
  nameSize: number;
}

/** A legal header: 4 KiB clusters, tables of one cluster, 1 MiB. */
export const PLAIN: HeaderFields = {
  magic: 'QED\0',
  clusterSize: 0x1000,
  tableSize: 1,
  headerSize: 1,
  features: 0n,
  compat: 0n,
  autoclear: 0n,
  l1Offset: 0x1000n,
  size: 0x100000n,
  nameOffset: 0,
  nameSize: 0,
};

export function headerBytes(fields: Partial<HeaderFields> = {}, name = ''): Buffer {
  const all = { ...PLAIN, ...fields };
  const bytes = Buffer.alloc(64 + Buffer.byteLength(name));
  bytes.write(all.magic, 0, 'latin1');
  bytes.writeUInt32LE(all.clusterSize, 4);
  bytes.writeUInt32LE(all.tableSize, 8);
  bytes.writeUInt32LE(all.headerSize, 12);
  bytes.writeBigUInt64LE(all.features, 16);
  bytes.writeBigUInt64LE(all.compat, 24);
  bytes.writeBigUInt64LE(all.autoclear, 32);
  bytes.writeBigUInt64LE(all.l1Offset, 40);
  bytes.writeBigUInt64LE(all.size, 48);
  bytes.writeUInt32LE(all.nameOffset, 56);
  bytes.writeUInt32LE(all.nameSize, 60);
  bytes.write(name, 64);
  return bytes;
}

export function temporaryDirectory(t: ExecutionContext): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A QED image in a file, with tables to scribble into. Offsets in clusters. */
export class CraftedImage {
  readonly file: string;
  readonly fields: HeaderFields;

  /** @param clusters length of the file, after the header's and the L1 table's */
  constructor(t: ExecutionContext, fields: Partial<HeaderFields> = {}, clusters = 0) {
    this.file = path.join(temporaryDirectory(t), 'a.qed');
    this.fields = { ...PLAIN, ...fields };
    fs.writeFileSync(this.file, headerBytes(this.fields));
    const { clusterSize, headerSize, tableSize } = this.fields;
    fs.truncateSync(this.file, (headerSize + tableSize + clusters) * clusterSize);
  }

  /** First cluster behind the L1 table. */
  get first(): number {
    return this.fields.headerSize + this.fields.tableSize;
  }

  write(offset: number, bytes: Uint8Array): this {
    const fd = fs.openSync(this.file, 'r+');
    fs.writeSync(fd, bytes, 0, bytes.length, offset);
    fs.closeSync(fd);
    return this;
  }

  entry(tableCluster: number, index: number, value: bigint | number): this {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(value));
    return this.write(tableCluster * this.fields.clusterSize + index * 8, bytes);
  }

  /** L1 entry that points to the table at a cluster. */
  l1(index: number, tableCluster: number): this {
    return this.entry(this.fields.headerSize, index, tableCluster * this.fields.clusterSize);
  }

  /** L2 entry that points to a data cluster. */
  l2(tableCluster: number, index: number, dataCluster: number): this {
    return this.entry(tableCluster, index, dataCluster * this.fields.clusterSize);
  }

  /** Fills a cluster, so that it is no hole. */
  data(cluster: number, byte = 0xdd): this {
    return this.write(cluster * this.fields.clusterSize, Buffer.alloc(this.fields.clusterSize, byte));
  }

  /** 64 bits at a byte offset. */
  read(offset: number): bigint {
    return fs.readFileSync(this.file).readBigUInt64LE(offset);
  }

  open<T>(use: (header: QedHeader, storage: FileStorage) => T, readOnly = false): T {
    const storage = FileStorage.open(this.file, { readOnly });
    try {
      return use(readQedHeader(storage), storage);
    } finally {
      storage.close();
    }
  }
}
