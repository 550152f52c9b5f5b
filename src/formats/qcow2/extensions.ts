/**
 * Header extensions: what follows the fields of the qcow2 header. Each is a type, a length, the data, padding to 8 bytes; type 0
 * ends the list. What we do not know is kept byte for byte.
 */
import { alignUp } from '../../units';

export const EXTENSION_END = 0;
export const EXTENSION_BACKING_FORMAT = 0xe2792aca;
export const EXTENSION_FEATURE_NAMES = 0x6803f857;
export const EXTENSION_BITMAPS = 0x23852875;
export const EXTENSION_ENCRYPTION = 0x0537be77;
export const EXTENSION_DATA_FILE = 0x44415441;

/** Bytes of type and length. */
const EXTENSION_HEAD = 8;
/** Bytes of one entry of the feature name table: kind, bit, name. */
const FEATURE_NAME_BYTES = 48;
/** Bitmaps in one image; QEMU's limit and ours. */
export const BITMAPS_MAX = 65535;
/** Bytes of the bitmap directory; ours: the largest number of bitmaps with the longest names QEMU takes. */
export const BITMAP_DIRECTORY_MAX = BITMAPS_MAX * 1048;

export interface HeaderExtension {
  type: number;
  data: Uint8Array;
}

/** Where the directory of persistent bitmaps lies. */
export interface BitmapsExtension {
  count: number;
  /** Bytes. */
  directorySize: number;
  directoryOffset: number;
}

/** Which field of feature bits a name belongs to; the value on disk. */
export const FEATURE_KINDS = ['incompatible', 'compatible', 'autoclear'] as const;
export type FeatureKind = (typeof FEATURE_KINDS)[number];

/** One line of the feature name table. */
export interface FeatureName {
  kind: FeatureKind;
  bit: number;
  name: string;
}

/**
 * Splits the area into extensions. Throws INVALID_FORMAT for one that does not fit.
 *
 * @param area from the end of the fields to the backing name or the end of the cluster
 */
export function parseExtensions(area: Uint8Array, fail: (problem: string) => never): HeaderExtension[] {
  const view = Buffer.from(area.buffer, area.byteOffset, area.length);
  const extensions: HeaderExtension[] = [];
  for (let at = 0; at + EXTENSION_HEAD <= view.length; ) {
    const type = view.readUInt32BE(at);
    const length = view.readUInt32BE(at + 4);
    if (type === EXTENSION_END) break;
    const room = view.length - at - EXTENSION_HEAD;
    if (length > room) {
      fail(`header extension 0x${type.toString(16)} has ${length} bytes, only ${room} are left for it`);
    }
    const from = at + EXTENSION_HEAD;
    extensions.push({ type, data: Uint8Array.from(view.subarray(from, from + length)) });
    at = from + alignUp(length, 8);
  }
  return extensions;
}

/** The extensions as bytes, with the one that ends the list. */
export function encodeExtensions(extensions: readonly HeaderExtension[]): Buffer {
  const parts = extensions.map(({ type, data }) => {
    const part = Buffer.alloc(EXTENSION_HEAD + alignUp(data.length, 8));
    part.writeUInt32BE(type, 0);
    part.writeUInt32BE(data.length, 4);
    part.set(data, EXTENSION_HEAD);
    return part;
  });
  return Buffer.concat([...parts, Buffer.alloc(EXTENSION_HEAD)]);
}

export function textExtension(type: number, text: string): HeaderExtension {
  return { type, data: Uint8Array.from(Buffer.from(text, 'utf8')) };
}

export function featureNamesExtension(names: readonly FeatureName[]): HeaderExtension {
  const data = Buffer.alloc(names.length * FEATURE_NAME_BYTES);
  names.forEach(({ kind, bit, name }, i) => {
    data[i * FEATURE_NAME_BYTES] = FEATURE_KINDS.indexOf(kind);
    data[i * FEATURE_NAME_BYTES + 1] = bit;
    data.write(name, i * FEATURE_NAME_BYTES + 2, FEATURE_NAME_BYTES - 2, 'utf8');
  });
  return { type: EXTENSION_FEATURE_NAMES, data: Uint8Array.from(data) };
}

/** Names for feature bits from the image itself, for messages; nonsense in it is ignored. */
export function parseFeatureNames(extensions: readonly HeaderExtension[]): FeatureName[] {
  const data = extensions.find(({ type }) => type === EXTENSION_FEATURE_NAMES)?.data;
  if (data === undefined) return [];
  const names: FeatureName[] = [];
  for (let at = 0; at + FEATURE_NAME_BYTES <= data.length; at += FEATURE_NAME_BYTES) {
    const kind = FEATURE_KINDS[data[at]];
    if (kind === undefined) continue;
    const bytes = data.subarray(at + 2, at + FEATURE_NAME_BYTES);
    const end = bytes.indexOf(0);
    const text = Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('utf8');
    // Untrusted text on its way to a terminal.
    names.push({ kind, bit: data[at + 1], name: text.replace(/[^\x20-\x7e]/g, '?') });
  }
  return names;
}

export function parseBitmapsExtension(data: Uint8Array, fail: (problem: string) => never): BitmapsExtension {
  const view = Buffer.from(data.buffer, data.byteOffset, data.length);
  if (view.length !== 24) fail(`bitmaps extension has ${view.length} bytes, 24 are defined`);
  const count = view.readUInt32BE(0);
  if (count < 1 || count > BITMAPS_MAX)
    fail(`bitmaps extension counts ${count} bitmaps, allowed are 1 to ${BITMAPS_MAX}`);
  const size = view.readBigUInt64BE(8);
  const offset = view.readBigUInt64BE(16);
  if (size > BigInt(BITMAP_DIRECTORY_MAX)) {
    fail(`bitmap directory has ${size} bytes, at most ${BITMAP_DIRECTORY_MAX} are supported`);
  }
  if (offset > BigInt(Number.MAX_SAFE_INTEGER))
    fail(`bitmap directory offset 0x${offset.toString(16)} is not supported`);
  return { count, directorySize: Number(size), directoryOffset: Number(offset) };
}

/** The text up to its first zero byte; undefined when it is not UTF-8. */
export function parseText(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(end < 0 ? bytes : bytes.subarray(0, end));
  } catch {
    return undefined;
  }
}
