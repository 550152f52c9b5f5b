/** Words of the command line, with the habits of qemu-img: `-o a=b,c=d`, `,,` for a comma, sizes with k M G T P E. */
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { UsageError } from './command';

type OptionSpecs = NonNullable<ParseArgsConfig['options']>;

/** Options by their long names, and the rest in order. */
type Words<T extends OptionSpecs> = ReturnType<
  typeof parseArgs<{ args: string[]; options: T; allowPositionals: true; strict: true }>
>;

/**
 * Splits arguments into options and the rest; options may stand anywhere, `--` ends them.
 * @throws UsageError in the words of getopt: `unrecognized option '-z'`, `missing argument for option '-f'`
 */
export function parseWords<T extends OptionSpecs>(args: string[], options: T): Words<T> {
  try {
    return parseArgs({ args, options, allowPositionals: true, strict: true });
  } catch (error) {
    throw usageErrorOf(error);
  }
}

function usageErrorOf(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const code = (error as { code?: unknown }).code;
  const option = /'([^' ]+)[^']*'/.exec(error.message)?.[1] ?? '';
  if (code === 'ERR_PARSE_ARGS_UNKNOWN_OPTION') return new UsageError(`unrecognized option '${option}'`);
  if (code === 'ERR_PARSE_ARGS_INVALID_OPTION_VALUE') {
    // `-f, --format <value>`: name it as most people write it.
    const name = option.replace(/,$/, '');
    if (/does not take an argument/.test(error.message)) return new UsageError(`option '${name}' takes no argument`);
    return new UsageError(`missing argument for option '${name}'`);
  }
  return error;
}

/** The value of `--output`: the last one wins. */
export function outputFormat(value: string | undefined): 'human' | 'json' {
  if (value === undefined || value === 'human') return 'human';
  if (value === 'json') return 'json';
  throw new UsageError('--output must be used with human or json as argument');
}

/** The value of `--backing`: which raw files an image may name. */
export function backingArgument(value: string | undefined): 'directory' | 'any' {
  if (value === undefined || value === 'directory') return 'directory';
  if (value === 'any') return 'any';
  throw new UsageError(`Invalid backing "${value}": use directory or any`);
}

const SUFFIXES = 'bkmgtpe';

/**
 * A size in bytes: `65536`, `64k`, `1.5G`, `0x10000`. Suffixes are powers of 1024; a fraction needs one larger than B.
 * @returns undefined for anything else
 */
export function parseSize(text: string): bigint | undefined {
  if (/^0x[0-9a-f]+$/i.test(text)) return BigInt(text);
  const match = /^([0-9]+)(?:\.([0-9]+))?([bkmgtpe])?$/i.exec(text);
  if (match === null) return;
  const [, whole = '0', fraction, suffix = 'b'] = match;
  const power = SUFFIXES.indexOf(suffix.toLowerCase());
  const unit = 1024n ** BigInt(power);
  if (fraction === undefined) return BigInt(whole) * unit;
  if (power === 0) return;
  return BigInt(whole) * unit + (BigInt(fraction) * unit) / 10n ** BigInt(fraction.length);
}

/** A size that fits a plain number, or an explanation as qemu-img gives it, in one line. */
export function sizeArgument(text: string, what: string): number {
  const size = parseSize(text);
  if (size === undefined) {
    throw new UsageError(
      `Invalid ${what} "${text}" specified. You may use k, M, G, T, P or E suffixes for powers of 1024`,
    );
  }
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new UsageError(`Invalid ${what} "${text}" specified. Must be between 0 and ${Number.MAX_SAFE_INTEGER}`);
  }
  return Number(size);
}

/**
 * The lists given with `-o`: `cluster_size=4k,backing_file=a,,b`. A name without value means `on`; of a name given twice the
 * last value counts.
 */
export function parseOptionList(lists: string[]): { values: Map<string, string>; help: boolean } {
  const values = new Map<string, string>();
  let help = false;
  for (const list of lists) {
    const parts = splitList(list);
    if (parts.some((part) => part === '')) throw new UsageError(`Invalid option list: ${list}`);
    for (const part of parts) {
      if (part === 'help' || part === '?') {
        help = true;
        continue;
      }
      const equals = part.indexOf('=');
      if (equals === -1) values.set(part, 'on');
      else values.set(part.slice(0, equals), part.slice(equals + 1));
    }
  }
  return { values, help };
}

/** Splits at single commas; two of them stand for one. */
function splitList(list: string): string[] {
  const parts = [''];
  for (let at = 0; at < list.length; at++) {
    const last = parts.length - 1;
    if (list[at] !== ',') parts[last] += list[at];
    else if (list[at + 1] === ',') {
      parts[last] += ',';
      at++;
    } else parts.push('');
  }
  return parts;
}
