/** Damage: what a stranger, a bad disk or a bug may make of a valid image. Each mutation says what it did. */
import { alignUp } from '../../src/units';
import type { Random } from '../helpers/random';
import { type Field, type Fields, fieldsOf } from './fields';
import { BASE_QCOW2, BASE_RAW, DATA_FILE, type Seed } from './seeds';

export interface Mutant {
  bytes: Buffer;
  /** Length of the file, which may be far behind the bytes. */
  length: number;
  /** What was done, in order. */
  story: string[];
}

/** What every mutation gets. */
interface Subject {
  mutant: Mutant;
  seed: Seed;
  fields: Fields;
  random: Random;
  others: readonly Seed[];
}

/** @returns what it did; undefined when it does not fit this image */
type Mutation = (subject: Subject) => string | undefined;

/** Secret of the host: a raw file outside the image's directory. */
export const SECRET = 'secret.raw';
/** A symbolic link to it beside the image. */
export const LINK = 'link.raw';
/** A FIFO beside the image. */
export const PIPE = 'pipe';

const NAMES = [
  `../${SECRET}`,
  `./../${SECRET}`,
  `file:../${SECRET}`,
  LINK,
  PIPE,
  `../${PIPE}`,
  'image',
  './image',
  'file:image',
  BASE_RAW,
  BASE_QCOW2,
  DATA_FILE,
  `../${BASE_QCOW2}`,
  '.',
  '..',
  '/',
  'missing',
  'missing/../base.raw',
  '/dev/zero',
  '/dev/full',
  '/dev/tty',
  '/dev/random',
  '/proc/self/mem',
  '/proc/self/fd/0',
  '/proc/self/cwd/image',
  '/proc/kmsg',
  '/etc/hostname',
  'json:{"driver":"raw","file":{"driver":"file","filename":"../secret.raw"}}',
  'nbd://127.0.0.1:1/x',
  'ssh://127.0.0.1/x',
  'fat:rw:..',
  'file:',
  'file:file:base.raw',
  'base.raw\0.qcow2',
  'a\nb\x1b[31m',
  '%s%n',
  '$(touch here)',
  `${'a/../'.repeat(150)}base.raw`,
  'x'.repeat(255),
  'x'.repeat(1023),
  '\u202eraw.esab',
];
const FORMATS = ['raw', 'qcow2', 'qed', 'qcow', 'vmdk', '', 'file', 'nbd', 'RAW', 'raw\0', 'constructor', '__proto__'];

/** As often as they stand here. */
const MUTATIONS: Mutation[] = [
  setField,
  setField,
  setField,
  setField,
  setField,
  swapFields,
  flipBits,
  flipBits,
  splice,
  splice,
  fill,
  truncate,
  grow,
  hostileName,
];

const cache = new WeakMap<Seed, Fields>();

/** @param others seeds whose bytes may be spliced in */
export function mutate(seed: Seed, random: Random, others: readonly Seed[]): Mutant {
  let fields = cache.get(seed);
  if (fields === undefined) {
    fields = fieldsOf(seed);
    cache.set(seed, fields);
  }
  const mutant = { bytes: Buffer.from(seed.bytes), length: seed.bytes.length, story: [] as string[] };
  const count = random.chance(0.5) ? 1 : random.between(2, 5);
  while (mutant.story.length < count) {
    const did = random.pick(MUTATIONS)({ mutant, seed, fields, random, others });
    if (did !== undefined) mutant.story.push(did);
  }
  return mutant;
}

function setField(subject: Subject): string | undefined {
  const { mutant, random } = subject;
  const field = pickField(subject);
  if (field === undefined || field.at + field.bytes > mutant.bytes.length) return undefined;
  const value = BigInt.asUintN(field.bytes * 8, interesting(subject, field));
  store(mutant.bytes, field, value);
  // A run of equal entries: a loop that follows them all, a count that overflows.
  let repeated = 0;
  if (random.chance(0.1)) {
    const end = Math.min(field.at + field.bytes * random.between(2, 200), mutant.bytes.length - field.bytes + 1);
    for (let at = field.at + field.bytes; at < end; at += field.bytes) {
      store(mutant.bytes, { ...field, at }, value);
      repeated++;
    }
  }
  return `${field.name} at ${field.at} = 0x${value.toString(16)}${repeated > 0 ? `, and ${repeated} more` : ''}`;
}

function swapFields(subject: Subject): string | undefined {
  const { bytes } = subject.mutant;
  const [a, b] = [pickField(subject), pickField(subject)];
  if (a === undefined || b === undefined || a.bytes !== b.bytes) return undefined;
  if (Math.max(a.at, b.at) + a.bytes > bytes.length) return undefined;
  const [first, second] = [load(bytes, a), load(bytes, b)];
  store(bytes, a, second);
  store(bytes, b, first);
  return `${a.name} and ${b.name} changed places`;
}

function flipBits({ mutant, random, fields }: Subject): string {
  const { bytes } = mutant;
  const flipped: string[] = [];
  for (let count = random.between(1, 4); count > 0; count--) {
    const all = [...fields.values()];
    const field = random.chance(0.7) ? random.pick(random.pick(all)) : undefined;
    const at = field === undefined ? random.below(bytes.length) : field.at + random.below(field.bytes);
    if (at >= bytes.length) continue;
    const bit = random.below(8);
    bytes[at] ^= 1 << bit;
    flipped.push(`${at}.${bit}`);
  }
  return `bits ${flipped.join(' ')} flipped`;
}

/** Bytes from elsewhere in the file, or from another image. */
function splice({ mutant, random, others }: Subject): string {
  const other = random.chance(0.4) ? random.pick(others) : undefined;
  const source = other === undefined ? Buffer.from(mutant.bytes) : other.bytes;
  const unit = random.pick([1, 8, 64, 512, 4096]);
  const length = Math.min(unit * random.between(1, 4), source.length);
  const from = Math.floor(random.below(source.length - length + 1) / unit) * unit;
  const whole = random.chance(0.2) ? 0 : Math.floor(random.below(mutant.bytes.length) / unit) * unit;
  source.copy(mutant.bytes, whole, from, from + length);
  return `${length} bytes at ${whole} from ${from} of ${other?.name ?? 'itself'}`;
}

function fill(subject: Subject): string {
  const { mutant, random } = subject;
  const at = pickField(subject)?.at ?? random.below(mutant.bytes.length);
  const length = random.pick([8, 64, 512, 4096]);
  const value = random.pick([0, 0xff, 0x80, 0x01, random.below(256)]);
  if (random.chance(0.3)) {
    for (let i = at; i < Math.min(at + length, mutant.bytes.length); i++) mutant.bytes[i] = random.below(256);
    return `${length} random bytes at ${at}`;
  }
  mutant.bytes.fill(value, Math.min(at, mutant.bytes.length), Math.min(at + length, mutant.bytes.length));
  return `${length} bytes at ${at} = ${value}`;
}

function truncate(subject: Subject): string | undefined {
  const { mutant, random } = subject;
  const { bytes } = mutant;
  if (bytes.length < 16) return undefined;
  const places = [random.below(bytes.length), random.below(256), pickField(subject)?.at ?? 0];
  const end = random.pick([...places, bytes.length - random.between(1, 4096), Math.floor(places[0] / 512) * 512]);
  mutant.bytes = bytes.subarray(0, Math.max(0, Math.min(end, bytes.length)));
  mutant.length = mutant.bytes.length;
  return `cut to ${mutant.length} bytes`;
}

function grow({ mutant, random }: Subject): string {
  const by = random.pick([1, 511, 512, 65_536, 2 ** 20 + 1, 2 ** 31, 2 ** 32 + 512, 2 ** 40, 2 ** 42]);
  if (by <= 65_536 && random.chance(0.5)) {
    const tail = Buffer.alloc(by, random.below(256));
    mutant.bytes = Buffer.concat([mutant.bytes, tail]);
    mutant.length = Math.max(mutant.length, mutant.bytes.length);
    return `${by} bytes behind the end`;
  }
  mutant.length += by;
  return `a hole of ${by} bytes behind the end`;
}

/** Lets the image name another file, properly. */
function hostileName({ mutant, seed, random }: Subject): string | undefined {
  const { bytes } = mutant;
  const name = Buffer.from(random.pick(NAMES));
  if (random.chance(0.1)) name[0] = 0xff;
  const words = `names ${JSON.stringify(name.toString())}`;
  if (bytes.length < 8192 || bytes.length !== mutant.length) return undefined;
  if (seed.format === 'qed') {
    bytes.writeBigUInt64LE(BigInt(random.pick([1, 5])), 16);
    bytes.writeUInt32LE(64, 56);
    bytes.writeUInt32LE(name.length, 60);
    name.copy(bytes, 64);
    return words;
  }
  if (seed.format === 'qcow') {
    bytes.writeBigUInt64BE(BigInt(bytes.length), 8);
    bytes.writeUInt32BE(name.length, 16);
    mutant.bytes = Buffer.concat([bytes, name]);
    mutant.length = mutant.bytes.length;
    return words;
  }
  if (seed.format !== 'qcow2') return undefined;
  const start = bytes.readUInt32BE(4) === 2 ? 72 : 112;
  const clusterSize = 2 ** Math.min(bytes.readUInt32BE(20), 16);
  const extensions: Buffer[] = [];
  const extend = (type: number, data: Buffer) => {
    const head = Buffer.alloc(8);
    head.writeUInt32BE(type, 0);
    head.writeUInt32BE(data.length, 4);
    extensions.push(head, data, Buffer.alloc(alignUp(data.length, 8) - data.length));
  };
  const external = seed.kind === 'qcow2-data-file' && random.chance(0.7);
  const format = random.chance(0.3) ? undefined : random.pick(FORMATS);
  if (external) extend(0x44415441, name);
  else if (seed.kind === 'qcow2-data-file') extend(0x44415441, Buffer.from(DATA_FILE));
  if (!external && format !== undefined) extend(0xe2792aca, Buffer.from(format));
  const header = Buffer.concat([...extensions, Buffer.alloc(8), external ? Buffer.alloc(0) : name]);
  if (start + header.length > Math.min(clusterSize, bytes.length)) return undefined;
  header.copy(bytes, start);
  bytes.writeBigUInt64BE(external ? 0n : BigInt(start + header.length - name.length), 8);
  bytes.writeUInt32BE(external ? 0 : name.length, 16);
  return `${words}${external ? ' as its data file' : `, format ${JSON.stringify(format)}`}`;
}

function pickField({ fields, random }: Subject): Field | undefined {
  const groups = [...fields.values()];
  return groups.length === 0 ? undefined : random.pick(random.pick(groups));
}

/** Values at which code goes wrong: ends of ranges, places of other structures, small changes of what is there. */
function interesting(subject: Subject, field: Field): bigint {
  const { mutant, random, seed } = subject;
  const current = load(mutant.bytes, field);
  const top = 1n << BigInt(field.bytes * 8);
  const power = 1n << BigInt(random.below(field.bytes * 8));
  const flags = [0n, 0n, 1n, 1n << 63n, 1n << 63n, 1n << 62n, (1n << 63n) | 1n, 3n << 62n];
  const place = (): bigint => {
    const unit = random.pick([512, 4096, 65_536]);
    const somewhere = random.pick([random.below(mutant.bytes.length + 1), pickField(subject)?.at ?? 0, mutant.length]);
    return BigInt(Math.floor(somewhere / unit) * unit + random.pick([0, 0, 0, 0, unit, 1, 8, 511]));
  };
  const choices: (() => bigint)[] = [
    () => BigInt(random.below(17)),
    () => power,
    () => power - 1n,
    () => power + 1n,
    () => top - 1n - BigInt(random.below(3)),
    () => current + 1n,
    () => current - 1n,
    () => current * 2n,
    () => current ^ power,
    place,
    place,
    () => place() | random.pick(flags),
    () => BigInt(mutant.length) + BigInt(random.pick([-512, -1, 0, 1, 512])),
    () => BigInt(Math.floor(random.next() * 2 ** 32)) * BigInt(Math.floor(random.next() * 2 ** 32)),
    () => {
      const other = pickField(subject);
      return other === undefined || other.at + other.bytes > mutant.bytes.length ? 0n : load(mutant.bytes, other);
    },
    () => BigInt(seed.bytes.length) * BigInt(random.below(1000)),
  ];
  return random.pick(choices)();
}

function load(bytes: Buffer, { at, bytes: count, littleEndian }: Field): bigint {
  let value = 0n;
  for (let i = 0; i < count; i++) value = value * 256n + BigInt(bytes[littleEndian ? at + count - 1 - i : at + i]);
  return value;
}

function store(bytes: Buffer, { at, bytes: count, littleEndian }: Field, value: bigint): void {
  for (let i = 0; i < count; i++) {
    bytes[littleEndian ? at + i : at + count - 1 - i] = Number((value >> BigInt(i * 8)) & 0xffn);
  }
}
