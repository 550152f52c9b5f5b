/** `imagefs info`: what an image says about itself, and its backing chain. Opens headers only: a missing base does not matter. */
import { type ImageInfo, infoOf, infoText } from '../../block/info';
import { backingArgument, outputFormat, parseWords } from '../args';
import { type Command, UsageError } from '../command';
import { type ImageFile, onlyFile, withChain, withImageFile } from '../image-file';
import { print, qemuJson } from '../output';

const HELP = `Usage: imagefs info [-f FMT] [--output=human|json] [--backing-chain [--backing WHERE]] [-U] FILE

Shows format, size, space taken and backing file of a disk image.

  -f, --format FMT      format of the image: qcow2, qcow, qed or raw (default: recognised by its first bytes)
      --output FORMAT   human (default) or json, with the fields of qemu-img
      --backing-chain   the backing file too, and its backing file, and so on
      --backing WHERE   directory (default): a raw backing file must lie in the directory of the image that names it;
                        any: wherever it says
  -U, --force-share     read although somebody writes to the image; what is shown may be inconsistent
      --debug           show where an error comes from

Exit code: 0, or 1 when an image cannot be opened or the words are wrong.
Example: imagefs info --output=json --backing-chain vm.qed
`;

function run(args: string[]): number {
  const { values, positionals } = parseWords(args, {
    format: { type: 'string', short: 'f' },
    output: { type: 'string' },
    'backing-chain': { type: 'boolean' },
    backing: { type: 'string' },
    'force-share': { type: 'boolean', short: 'U' },
    'image-opts': { type: 'boolean' },
    debug: { type: 'boolean' },
  });
  if (values['image-opts'])
    throw new UsageError('--image-opts is not supported: name the file, and its format with -f');
  const output = outputFormat(values.output);
  const path = onlyFile(positionals);
  const options = { format: values.format, readOnly: true, forceShare: values['force-share'] ?? false };

  const chain = values['backing-chain'] === true;
  const backing = backingArgument(values.backing);
  const infos = chain ? withChain(path, { ...options, backing }, describe) : [withImageFile(path, options, describe)];
  if (output === 'human') print(infos.map(infoText).join('\n'));
  else print(`${qemuJson(chain ? infos : infos[0])}\n`);
  return 0;
}

function describe(file: ImageFile): ImageInfo {
  const { path, header, storage, module } = file;
  return infoOf({
    path,
    header,
    virtualSize: header.virtualSize,
    actualSize: storage.allocatedBytes(),
    description: module.describe?.(header, storage),
  });
}

export const command: Command = {
  name: 'info',
  summary: 'Show format, size and backing chain of an image',
  help: HELP,
  usageExit: 1,
  run,
};
