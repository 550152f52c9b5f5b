/**
 * The options of `imagefs mount`, from long options, short ones and the `-o` list alike: fstab and mount(8) can say
 * everything that the command line can.
 */
import os from 'node:os';
import { GIB, MIB } from '../../units';
import { backingArgument, parseWords, sizeArgument } from '../args';
import { UsageError } from '../command';

export interface MountSettings {
  readOnly: boolean;
  foreground: boolean;
  debug: boolean;
  format?: string;
  threads: number;
  /** The crew may grow to this many workers; a number that the user gave is never exceeded. */
  threadsMax: number;
  session: 'auto' | 'kernel' | 'native';
  cacheSize: number;
  backing: 'directory' | 'any';
  growable: boolean;
  kernelCache: boolean;
  allowOther: boolean;
  forceShare: boolean;
  shareRw: boolean;
  log?: string;
  /** Words of mount(8) that the kernel understands. */
  flags: string[];
}

/** Ours: each blocks in read(2) and costs 8.5 MiB. */
const THREADS_MAX = 64;
/** Without a word of the user the crew grows up to this once the mount answers: enough to keep a disk busy. */
const THREADS_GROWN = 8;
const CACHE_SIZE_DEFAULT = 32 * MIB;
const CACHE_SIZE_MIN = MIB;
const CACHE_SIZE_MAX = 4 * GIB;

/** Options with a value: how the word becomes a setting. The name is the long option; `-o` also takes `_` for `-`. */
const VALUES: Record<string, (settings: MountSettings, value: string) => void> = {
  format: (settings, value) => {
    settings.format = value;
  },
  threads: (settings, value) => {
    settings.threads = /^[0-9]+$/.test(value) ? Number(value) : Number.NaN;
    if (!(settings.threads >= 1 && settings.threads <= THREADS_MAX)) {
      throw new UsageError(`Invalid number of threads "${value}": use 1 to ${THREADS_MAX}`);
    }
    settings.threadsMax = settings.threads;
  },
  session: (settings, value) => {
    settings.session = oneOf('session', value, ['auto', 'kernel', 'native'] as const);
  },
  'cache-size': (settings, value) => {
    settings.cacheSize = parseCacheSize(value);
  },
  backing: (settings, value) => {
    settings.backing = backingArgument(value);
  },
  log: (settings, value) => {
    settings.log = value;
  },
};

/** Options that are there or not. */
const SWITCHES: Record<string, (settings: MountSettings) => void> = {
  'read-only': (settings) => {
    settings.readOnly = true;
  },
  foreground: (settings) => {
    settings.foreground = true;
  },
  debug: (settings) => {
    settings.debug = true;
    settings.foreground = true;
  },
  growable: (settings) => {
    settings.growable = true;
  },
  'kernel-cache': (settings) => {
    settings.kernelCache = true;
  },
  'allow-other': (settings) => {
    settings.allowOther = true;
  },
  'force-share': (settings) => {
    settings.forceShare = true;
  },
  'share-rw': (settings) => {
    settings.shareRw = true;
  },
};

const SHORT: Record<string, string> = { r: 'read-only', f: 'foreground', d: 'debug', U: 'force-share' };

/** Further words of `-o`. The last one wins, as with mount(8). */
const WORDS: Record<string, (settings: MountSettings) => void> = {
  ro: (settings) => {
    settings.readOnly = true;
  },
  rw: (settings) => {
    settings.readOnly = false;
  },
};

/** Handed on to the kernel. */
const KERNEL_FLAGS = new Set(['noexec', 'noatime', 'nodiratime', 'relatime', 'strictatime', 'dirsync']);

/**
 * Words for other readers of fstab, or what we do anyway (nosuid, nodev, default_permissions): accepted and ignored. `suid` and
 * `dev` too: files of an imagefs mount are never programs or devices.
 */
const IGNORED = new Set(
  (
    'defaults auto noauto user nouser users owner group nofail _netdev exec suid nosuid dev nodev atime norelatime ' +
    'nostrictatime diratime async sync default_permissions silent loud nosymfollow'
  ).split(' '),
);
const IGNORED_PREFIX = /^(x-|X-|user=|comment=)/;

export function defaultSettings(): MountSettings {
  const threads = Math.min(THREADS_MAX, Math.max(4, os.availableParallelism()));
  return {
    readOnly: false,
    foreground: false,
    debug: false,
    threads,
    threadsMax: Math.max(THREADS_GROWN, threads),
    session: 'auto',
    cacheSize: CACHE_SIZE_DEFAULT,
    backing: 'directory',
    growable: false,
    kernelCache: false,
    allowOther: false,
    forceShare: false,
    shareRw: false,
    flags: [],
  };
}

/** @returns the settings and what is no option, in order. Long options outdo `-o`. Throws UsageError. */
export function parseMountArguments(args: string[]): { settings: MountSettings; positionals: string[] } {
  const specs: Record<string, { type: 'string' | 'boolean'; short?: string; multiple?: boolean }> = {
    options: { type: 'string', short: 'o', multiple: true },
  };
  for (const name of Object.keys(VALUES)) specs[name] = { type: 'string' };
  for (const name of Object.keys(SWITCHES)) specs[name] = { type: 'boolean' };
  for (const [short, name] of Object.entries(SHORT)) specs[name] = { type: 'boolean', short };

  const { values, positionals } = parseWords(args, specs);
  const settings = defaultSettings();
  const lists = Array.isArray(values.options) ? values.options : [];
  for (const list of lists) applyOptionList(settings, String(list));
  for (const [name, value] of Object.entries(values)) {
    if (value === true) SWITCHES[name]?.(settings);
    else if (typeof value === 'string') VALUES[name]?.(settings, value);
  }
  return { settings, positionals };
}

/** The comma-separated words of one `-o`. @param sloppy skip unknown ones (mount -s) */
export function applyOptionList(settings: MountSettings, list: string, sloppy = false): void {
  for (const word of list.split(',')) {
    if (word !== '') applyOptionWord(settings, word, sloppy);
  }
}

function applyOptionWord(settings: MountSettings, word: string, sloppy: boolean): void {
  const at = word.indexOf('=');
  const name = at < 0 ? word : word.slice(0, at);
  const value = at < 0 ? undefined : word.slice(at + 1);
  const long = name.replaceAll('_', '-');
  const apply = own(SWITCHES, long) ?? own(WORDS, name);
  const setValue = own(VALUES, long);
  if (KERNEL_FLAGS.has(word)) {
    if (!settings.flags.includes(word)) settings.flags.push(word);
  } else if (IGNORED.has(word) || IGNORED_PREFIX.test(word)) {
    return;
  } else if (apply !== undefined && value === undefined) {
    apply(settings);
  } else if (setValue !== undefined && value !== undefined && value !== '') {
    setValue(settings, value);
  } else if (apply !== undefined) {
    throw new UsageError(`Option "${name}" takes no value, but "${word}" gives one`);
  } else if (setValue !== undefined) {
    throw new UsageError(`Option "${name}" needs a value: ${name}=...`);
  } else if (!sloppy) {
    throw new UsageError(`Unknown mount option "${word}"`);
  }
}

function own<T>(table: Record<string, T>, name: string): T | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

function oneOf<T extends string>(name: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((word) => word === value);
  if (found === undefined) throw new UsageError(`Invalid ${name} "${value}": use ${allowed.join(' or ')}`);
  return found;
}

function parseCacheSize(value: string): number {
  const size = sizeArgument(value, 'cache size');
  if (size < CACHE_SIZE_MIN || size > CACHE_SIZE_MAX)
    throw new UsageError(`Invalid cache size "${value}": use 1M to 4G`);
  return size;
}
