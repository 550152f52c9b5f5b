/** The list behind `create -o`: help, checks, and what the values mean. */
import { type CreateOptionSpec, ENCRYPTION_OPTION } from '../formats/create-options';
import type { CreateOptions } from '../formats/format';
import { sizeArgument } from './args';
import { UsageError } from './command';

/** Words for yes and no that qemu-img takes. */
const YES = new Set(['on', 'yes', 'true', 'y']);
const NO = new Set(['off', 'no', 'false', 'n']);

/** What `-o help` prints: by name, as qemu-img has it. */
export function optionsHelp(specs: readonly CreateOptionSpec[]): string {
  const lines = specs
    .filter(({ hidden }) => hidden !== true)
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ name, type, help }) => {
      const word = `${name}=<${type === 'bool' ? 'bool (on/off)' : type}>`;
      return `  ${word.padEnd(22)} - ${help}\n`;
    });
  return `Supported options:\n${lines.join('')}`;
}

/** Throws UsageError for names that the format does not have, and for values of the wrong type. */
export function checkOptions(specs: readonly CreateOptionSpec[], values: Map<string, string>): void {
  for (const [name, value] of values) {
    const spec = specs.find((candidate) => candidate.name === name);
    refuseEncryption(specs, name, value);
    if (spec === undefined) throw new UsageError(`Invalid parameter '${name}'`);
    if (spec.values !== undefined && !spec.values.includes(value)) {
      throw new UsageError(`Parameter '${name}' does not accept value '${value}'`);
    }
    if (spec.type === 'bool' && !YES.has(value) && !NO.has(value)) {
      throw new UsageError(`Parameter '${name}' expects 'on' or 'off'`);
    }
    if (spec.type === 'num' && !/^[0-9]+$/.test(value)) throw new UsageError(`Parameter '${name}' expects a number`);
    if (spec.type === 'size') sizeArgument(value, sizeWord(name));
  }
}

function refuseEncryption(specs: readonly CreateOptionSpec[], name: string, value: string): void {
  const wanted = name.startsWith('encrypt.') || (name === ENCRYPTION_OPTION.name && YES.has(value));
  if (!wanted || !specs.includes(ENCRYPTION_OPTION)) return;
  throw new UsageError(
    `Cannot create an encrypted image: '${name}=${value}' is not supported, only 'encryption=off' is`,
  );
}

/** How the line "Formatting ..." shows an option: sizes as plain numbers; undefined when it shows nothing. */
export function shownValue(spec: CreateOptionSpec, values: Map<string, string>): string | undefined {
  const value = values.get(spec.name);
  if (value === undefined) return spec.shown;
  return spec.type === 'size' ? String(sizeArgument(value, sizeWord(spec.name))) : value;
}

/** The options without size and backing file, which may come from elsewhere. The values were checked. */
export function createOptionsOf(values: Map<string, string>): Omit<CreateOptions, 'size'> {
  const result: Omit<CreateOptions, 'size'> = {};
  const size = (name: string, set: (value: number) => void) => given(name, (text) => set(sizeArgument(text, name)));
  const given = (name: string, set: (text: string) => void) => {
    const text = values.get(name);
    if (text !== undefined) set(text);
  };
  size('cluster_size', (value) => (result.clusterSize = value));
  size('table_size', (value) => (result.tableSize = value));
  given('preallocation', (word) => (result.preallocation = word as CreateOptions['preallocation']));
  given('compat', (word) => (result.version = word === '0.10' || word === 'v2' ? 2 : 3));
  given('refcount_bits', (text) => (result.refcountBits = Number(text)));
  given('lazy_refcounts', (word) => (result.lazyRefcounts = YES.has(word)));
  given('extended_l2', (word) => (result.extendedL2 = YES.has(word)));
  given('compression_type', (word) => (result.compressionType = word as CreateOptions['compressionType']));
  const raw = YES.has(values.get('data_file_raw') ?? 'off');
  given('data_file', (name) => (result.dataFile = { name, raw }));
  if (raw && result.dataFile === undefined) throw new UsageError('data-file-raw requires data-file');
  return result;
}

function sizeWord(name: string): string {
  return name === 'size' ? 'image size' : name.replaceAll('_', ' ');
}
