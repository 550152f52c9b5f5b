/** Where the fields of a valid image are, so that mutations can meet them: from the specifications, with nothing of the code under test. */
import { alignUp } from '../../src/units';
import { Qcow2Bytes } from '../helpers/qcow2-bytes';
import type { Seed } from './seeds';

export interface Field {
  name: string;
  at: number;
  bytes: 1 | 2 | 4 | 8;
  littleEndian: boolean;
}

/** Fields by what they belong to: a mutation chooses a group first, so that the header is met as often as a thousand entries. */
export type Fields = Map<string, Field[]>;

/** Of each table so many entries are fields: enough for every situation. */
const ENTRIES_MAX = 96;

type Part = [name: string, offset: number, bytes: Field['bytes']];

const QCOW2_HEADER: Part[] = [
  ['magic', 0, 4],
  ['version', 4, 4],
  ['backing_file_offset', 8, 8],
  ['backing_file_size', 16, 4],
  ['cluster_bits', 20, 4],
  ['size', 24, 8],
  ['crypt_method', 32, 4],
  ['l1_size', 36, 4],
  ['l1_table_offset', 40, 8],
  ['refcount_table_offset', 48, 8],
  ['refcount_table_clusters', 56, 4],
  ['nb_snapshots', 60, 4],
  ['snapshots_offset', 64, 8],
];
const QCOW2_HEADER_3: Part[] = [
  ['incompatible_features', 72, 8],
  ['compatible_features', 80, 8],
  ['autoclear_features', 88, 8],
  ['refcount_order', 96, 4],
  ['header_length', 100, 4],
  ['compression_type', 104, 1],
];
const SNAPSHOT: Part[] = [
  ['l1_table_offset', 0, 8],
  ['l1_size', 8, 4],
  ['id_str_size', 12, 2],
  ['name_size', 14, 2],
  ['date_sec', 16, 4],
  ['date_nsec', 20, 4],
  ['vm_clock_nsec', 24, 8],
  ['vm_state_size', 32, 4],
  ['extra_data_size', 36, 4],
  ['vm_state_size_large', 40, 8],
  ['disk_size', 48, 8],
];
const BITMAP: Part[] = [
  ['bitmap_table_offset', 0, 8],
  ['bitmap_table_size', 8, 4],
  ['flags', 12, 4],
  ['type', 16, 1],
  ['granularity_bits', 17, 1],
  ['name_size', 18, 2],
  ['extra_data_size', 20, 4],
];
const QED_HEADER: Part[] = [
  ['magic', 0, 4],
  ['cluster_size', 4, 4],
  ['table_size', 8, 4],
  ['header_size', 12, 4],
  ['features', 16, 8],
  ['compat_features', 24, 8],
  ['autoclear_features', 32, 8],
  ['l1_table_offset', 40, 8],
  ['image_size', 48, 8],
  ['backing_filename_offset', 56, 4],
  ['backing_filename_size', 60, 4],
];
const QCOW_HEADER: Part[] = [
  ['magic', 0, 4],
  ['version', 4, 4],
  ['backing_file_offset', 8, 8],
  ['backing_file_size', 16, 4],
  ['mtime', 20, 4],
  ['size', 24, 8],
  ['cluster_bits', 32, 1],
  ['l2_bits', 33, 1],
  ['crypt_method', 36, 4],
  ['l1_table_offset', 40, 8],
];

export function fieldsOf(seed: Seed): Fields {
  const collected = new Collector(seed);
  if (seed.format === 'qcow2') qcow2Fields(collected, new Qcow2Bytes(seed.bytes));
  else if (seed.format === 'qed') qedFields(collected);
  else if (seed.format === 'qcow') qcowFields(collected);
  else
    collected.parts('sector', 0, [
      ['magic', 0, 4],
      ['version', 4, 4],
    ]);
  return collected.groups;
}

class Collector {
  readonly groups: Fields = new Map();
  readonly bytes: Buffer;
  private readonly littleEndian: boolean;

  constructor(seed: Seed) {
    this.bytes = seed.bytes;
    this.littleEndian = seed.format === 'qed';
  }

  parts(group: string, base: number, parts: Part[]): void {
    for (const [name, offset, bytes] of parts) this.add(group, name, base + offset, bytes);
  }

  /** The entries of a table: the first of them, and those that are in use. */
  table(group: string, base: number, count: number, bytes: Field['bytes'] = 8): void {
    let left = ENTRIES_MAX;
    for (let index = 0; index < count && left > 0; index++) {
      const at = base + index * bytes;
      if (at + bytes > this.bytes.length) return;
      const used = this.bytes.subarray(at, at + bytes).some((byte) => byte !== 0);
      if (index > 8 && !used) continue;
      this.add(group, `${index}`, at, bytes);
      left--;
    }
  }

  private add(group: string, name: string, at: number, bytes: Field['bytes']): void {
    if (at + bytes > this.bytes.length) return;
    const fields = this.groups.get(group) ?? [];
    this.groups.set(group, fields);
    fields.push({ name: `${group} ${name}`, at, bytes, littleEndian: this.littleEndian });
  }
}

function qcow2Fields(collected: Collector, image: Qcow2Bytes): void {
  collected.parts('header', 0, QCOW2_HEADER);
  const { clusterSize, bytes } = image;
  let extension = 72;
  if (image.u32(4) === 3) {
    collected.parts('header', 0, QCOW2_HEADER_3);
    extension = image.u32(100);
  }
  for (let more = true; more; ) {
    more = image.u32(extension) !== 0;
    const length = image.u32(extension + 4);
    const data: Part[] = [];
    for (let at = 0; at + 4 <= length && at < 32; at += 4) data.push([`data ${at}`, 8 + at, 4]);
    collected.parts('extensions', extension, [['type', 0, 4], ['length', 4, 4], ...data]);
    extension = alignUp(extension + 8 + length, 8);
  }
  collected.table('refcount table', image.refcountTable, clusterSize / 8);
  for (let index = 0; index < clusterSize / 8; index++) {
    if (image.block(index) !== 0) collected.table('refcount block', image.block(index), clusterSize / 2, 2);
  }
  qcow2Tables(collected, image, 'active', image.l1, image.u32(36));
  let at = image.snapshots;
  for (let index = 0; index < image.u32(60); index++) {
    collected.parts('snapshot table', at, SNAPSHOT);
    qcow2Tables(collected, image, 'snapshot', Number(image.u64(at)), image.u32(at + 8));
    at = alignUp(at + 40 + image.u32(at + 36) + bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14), 8);
  }
  const directory = image.bitmapDirectory;
  if (directory === 0) return;
  collected.parts('bitmap directory', directory, BITMAP);
  collected.parts('bitmap directory', directory + 32, BITMAP);
  collected.table('bitmap table', Number(image.u64(directory)), 4);
}

function qcow2Tables(collected: Collector, image: Qcow2Bytes, owner: string, l1: number, entries: number): void {
  collected.table(`${owner} L1`, l1, entries);
  for (let index = 0; index < entries; index++) {
    const table = image.l2(index, l1);
    if (table !== 0) collected.table(`${owner} L2`, table, image.clusterSize / 8);
  }
}

function qedFields(collected: Collector): void {
  const { bytes } = collected;
  collected.parts('header', 0, QED_HEADER);
  const entries = (bytes.readUInt32LE(4) * bytes.readUInt32LE(8)) / 8;
  const l1 = Number(bytes.readBigUInt64LE(40));
  collected.table('L1', l1, entries);
  for (let index = 0; index < entries; index++) {
    const table = Number(bytes.readBigUInt64LE(l1 + index * 8));
    if (table !== 0) collected.table('L2', table, entries);
  }
}

function qcowFields(collected: Collector): void {
  const { bytes } = collected;
  collected.parts('header', 0, QCOW_HEADER);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const span = 2 ** (bytes[32] + bytes[33]);
  const entries = Math.ceil(Number(bytes.readBigUInt64BE(24)) / span);
  collected.table('L1', l1, entries);
  for (let index = 0; index < entries; index++) {
    const table = Number(bytes.readBigUInt64BE(l1 + index * 8));
    if (table !== 0) collected.table('L2', table, 2 ** bytes[33]);
  }
}
