/**
 * `mount.imagefs SPEC DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`: what mount(8) runs for `mount -t imagefs` and for fstab lines.
 * Exit codes are the bits of mount(8).
 */
import { BlockError, errnoNameOf } from '../errors';
import { parseWords } from './args';
import { UsageError } from './command';
import { mountImages } from './commands/mount';
import { applyOptionList, defaultSettings } from './commands/mount-options';
import { printError } from './output';

const EXIT_USAGE = 1;
const EXIT_SYSTEM = 2;
const EXIT_INTERNAL = 4;
const EXIT_INTERRUPTED = 8;
const EXIT_FAILURE = 32;

const USAGE = 'Usage: mount.imagefs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]';

/** No room for what the system must provide: bit 2 of mount(8). */
const SYSTEM_ERRNOS = new Set(['ENOMEM', 'EAGAIN', 'EMFILE', 'ENFILE']);

/** @returns the exit code */
export async function mountHelper(args: string[]): Promise<number> {
  // The daemon sees that this process has gone, and unmounts what it may have mounted by then.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => process.exit(EXIT_INTERRUPTED));
  try {
    return await run(args);
  } catch (error) {
    printError(`mount.imagefs: ${error instanceof Error ? error.message : String(error)}`);
    return exitCodeOf(error);
  }
}

async function run(args: string[]): Promise<number> {
  const { values, positionals } = parseWords(args, {
    sloppy: { type: 'boolean', short: 's' },
    fake: { type: 'boolean', short: 'f' },
    'no-mtab': { type: 'boolean', short: 'n' },
    verbose: { type: 'boolean', short: 'v' },
    namespace: { type: 'string', short: 'N' },
    options: { type: 'string', short: 'o', multiple: true },
    type: { type: 'string', short: 't' },
    help: { type: 'boolean', short: 'h' },
  });
  if (values.help) {
    printError(USAGE);
    return 0;
  }
  const [image, mountpoint, ...more] = positionals;
  if (image === undefined || mountpoint === undefined || more.length > 0) throw new UsageError(USAGE);
  const settings = defaultSettings();
  for (const list of values.options ?? []) applyOptionList(settings, list, values.sloppy ?? false);
  // mount(8) waits for this process: it must not stay.
  settings.foreground = false;
  const say = (message: string): void => printError(`mount.imagefs: ${message}`);
  // The image's path as source, as other file systems have it: mount -a and umount IMAGE find the mount by it.
  const checkOnly = values.fake ?? false;
  const daemon = await mountImages({ images: [image], mountpoint, settings, source: image, checkOnly }, say);
  for (const warning of daemon?.warnings ?? []) say(warning);
  if (values.verbose && daemon !== undefined) say(`"${image}" is mounted at "${mountpoint}" (pid ${daemon.pid})`);
  return 0;
}

function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return EXIT_USAGE;
  if (!(error instanceof BlockError)) return EXIT_INTERNAL;
  if (error.code === 'DENIED') return EXIT_USAGE;
  return SYSTEM_ERRNOS.has(errnoNameOf(error) ?? '') ? EXIT_SYSTEM : EXIT_FAILURE;
}
