/** `imagefs check`: are the tables of an image consistent? Reports and exit codes are those of `qemu-img check`. */
import { BlockError } from '../../errors';
import type { CheckResult, RepairMode } from '../../formats/format';
import { outputFormat, parseWords } from '../args';
import { type Command, UsageError } from '../command';
import { onlyFile, withImageFile } from '../image-file';
import { percent, print, printError, qemuJson } from '../output';

const EXIT_CLEAN = 0;
const EXIT_CORRUPT = 2;
const EXIT_LEAKS = 3;
const EXIT_UNSUPPORTED = 63;

/** Accepted because scripts say it; the check uses the page cache whatever it is. */
const CACHE_MODES = new Set(['none', 'off', 'writeback', 'writethrough', 'directsync', 'unsafe']);

const HELP = `Usage: imagefs check [-f FMT] [--output=human|json] [-r leaks|all] [-q] [-U] FILE

Checks the tables of a disk image, and repairs them with -r. Raw images have none.

  -f, --format FMT      format of the image: qcow2, qcow, qed or raw (default: recognised by its first bytes)
      --output FORMAT   human (default) or json, with the fields of qemu-img
  -r, --repair leaks    give clusters that nothing uses back to the host
  -r, --repair all      also clear entries that point to no possible place (what they held is lost already), and for
                        qcow2 set wrong reference counts and copied flags right or make new reference counts
  -q, --quiet           only the exit code
  -T, --cache MODE      accepted and ignored
  -U, --force-share     check although somebody writes to the image; may report what is not there
      --debug           show where an error comes from

A cluster in the middle of the file that nothing uses and that takes no space on the host is no leak.

Exit code, after the repair if there was one: 0 consistent, 1 the check could not be completed or the words are wrong,
2 corrupt, 3 leaked clusters but not corrupt, 63 the format has no checks.
Example: imagefs check -r leaks vm.qed
`;

function run(args: string[]): number {
  const { values, positionals } = parseWords(args, {
    format: { type: 'string', short: 'f' },
    output: { type: 'string' },
    repair: { type: 'string', short: 'r' },
    cache: { type: 'string', short: 'T' },
    quiet: { type: 'boolean', short: 'q' },
    'force-share': { type: 'boolean', short: 'U' },
    'image-opts': { type: 'boolean' },
    debug: { type: 'boolean' },
  });
  if (values['image-opts'])
    throw new UsageError('--image-opts is not supported: name the file, and its format with -f');
  if (values.cache !== undefined && !CACHE_MODES.has(values.cache)) {
    throw new UsageError(`Invalid source cache option: ${values.cache}`);
  }
  const output = outputFormat(values.output);
  const quiet = values.quiet ?? false;
  const repair = repairMode(values.repair);
  const path = onlyFile(positionals);
  const forceShare = values['force-share'] ?? false;
  const options = { format: values.format, readOnly: repair === 'none', forceShare, damaged: true };

  return withImageFile(path, options, ({ module, header, storage }) => {
    if (module.check === undefined) {
      printError('imagefs: This image format does not support checks');
      return EXIT_UNSUPPORTED;
    }
    const result = module.check(header, storage, repair);
    if (output === 'json') print(`${qemuJson(jsonOf(result, path, module.name))}\n`);
    if (!quiet) {
      for (const message of result.messages) printError(message);
      if (output === 'human') print(reportOf(result));
    }
    if (result.checkErrors > 0) {
      throw new BlockError('IO', `Check of "${path}" failed: ${result.checkErrors} tables could not be read`, { path });
    }
    if (result.corruptions > 0) return EXIT_CORRUPT;
    return result.leaks > 0 ? EXIT_LEAKS : EXIT_CLEAN;
  });
}

function repairMode(word: string | undefined): RepairMode {
  if (word === undefined) return 'none';
  if (word === 'leaks' || word === 'all') return word;
  throw new UsageError(`Unknown option value for -r (expecting 'leaks' or 'all'): ${word}`);
}

/** Counts that are 0 are left out where qemu-img leaves them out; the order of the fields is its order too. */
function jsonOf(result: CheckResult, filename: string, format: string): object {
  const optional = (name: string, count: number) => (count === 0 ? {} : { [name]: count });
  return {
    ...optional('image-end-offset', result.imageEndOffset),
    ...optional('compressed-clusters', result.compressedClusters),
    ...optional('total-clusters', result.totalClusters),
    ...optional('corruptions', result.corruptions),
    ...optional('corruptions-fixed', result.corruptionsFixed),
    'check-errors': result.checkErrors,
    ...optional('leaks', result.leaks),
    ...optional('leaks-fixed', result.leaksFixed),
    ...optional('allocated-clusters', result.allocatedClusters),
    filename,
    format,
    ...optional('fragmented-clusters', result.fragmentedClusters),
  };
}

function reportOf(result: CheckResult): string {
  const lines: string[] = [];
  if (result.corruptionsFixed > 0 || result.leaksFixed > 0) {
    lines.push(
      'The following inconsistencies were found and repaired:',
      '',
      `    ${result.leaksFixed} leaked clusters`,
      `    ${result.corruptionsFixed} corruptions`,
      '',
      'Double checking the fixed image now...',
    );
  }
  if (result.corruptions === 0 && result.leaks === 0 && result.checkErrors === 0) {
    lines.push('No errors were found on the image.');
  }
  if (result.corruptions > 0) {
    lines.push('', `${result.corruptions} errors were found on the image.`);
    lines.push('Data may be corrupted, or further writes to the image may corrupt it.');
  }
  if (result.leaks > 0) {
    lines.push('', `${result.leaks} leaked clusters were found on the image.`);
    lines.push('This means waste of disk space, but no harm to data.');
  }
  if (result.checkErrors > 0) lines.push('', `${result.checkErrors} internal errors have occurred during the check.`);
  if (result.totalClusters > 0 && result.allocatedClusters > 0) {
    const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = result;
    const shares = [
      `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)} allocated`,
      `${percent(fragmentedClusters, allocatedClusters)} fragmented`,
      `${percent(compressedClusters, allocatedClusters)} compressed clusters`,
    ];
    lines.push(shares.join(', '));
  }
  if (result.imageEndOffset > 0) lines.push(`Image end offset: ${result.imageEndOffset}`);
  return `${lines.join('\n')}\n`;
}

export const command: Command = {
  name: 'check',
  summary: 'Check an image for consistency, and repair it',
  help: HELP,
  usageExit: 1,
  run,
};
